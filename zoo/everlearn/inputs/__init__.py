"""Bytes to arrays: one file a step, from an image file or a text to what a trunk takes."""
