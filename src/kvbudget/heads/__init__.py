"""What attention heads do, and the budgets that follow from it."""
