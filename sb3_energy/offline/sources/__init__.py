"""Where transitions are kept, one form a file."""
