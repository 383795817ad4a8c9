"""Gradient learning: a head, and a tail of the backbone where one is trained, by steps on new and replayed features.

It needs torch. `learner.GradientLearner` is the way in.
"""
