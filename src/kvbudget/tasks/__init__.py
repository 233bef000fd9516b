"""What a model is asked, at an exact length, and how its answer is scored, one file a kind."""
