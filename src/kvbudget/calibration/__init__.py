"""What attention heads do and what a scorer learns, measured once a model on prompts of its own."""
