"""What to measure and what of it is there: planning, digests, archives. Imports no torch."""
