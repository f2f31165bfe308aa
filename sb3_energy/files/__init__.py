"""Atomic writes, checksums, and readable errors for damaged files."""
