"""From finished cells to tidy CSV files. Nothing here imports torch."""
