"""Derivatives of layers by hand."""
