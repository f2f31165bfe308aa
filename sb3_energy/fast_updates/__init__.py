"""Everything that only makes updates faster."""
