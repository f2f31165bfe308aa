"""Base + energy + refiner -> event: what every policy that refines does."""
