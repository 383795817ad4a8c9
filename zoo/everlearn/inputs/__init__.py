"""Bytes to arrays: one file a step, from an image file to the pixels a trunk takes."""
