"""From CSV files to the tables, figures and numbers of the paper. Nothing here imports torch."""
