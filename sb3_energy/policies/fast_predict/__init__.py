"""Predictions of a few observations, without torch's overhead."""
