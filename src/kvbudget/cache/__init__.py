"""The cache: slots, budgets, and the transformers cache on top of them."""
