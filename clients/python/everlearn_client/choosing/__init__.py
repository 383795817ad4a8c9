"""Trying things out on a labelled sample before they are relied on: is a model sound, which backbone, which recipe.

Everything is tried on models for a moment (`trial`); judging what they showed is pure functions of figures.
"""
