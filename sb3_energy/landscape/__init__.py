"""Pictures of energies."""
