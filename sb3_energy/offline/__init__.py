"""Offline algorithms: learning from a data set, without an environment."""
