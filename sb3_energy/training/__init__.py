"""What the loop of any algorithm needs."""
