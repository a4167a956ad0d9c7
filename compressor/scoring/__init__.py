"""Scores: one number a unit, by any of the methods."""
