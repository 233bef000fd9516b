"""One figure a module. Each has `draw(src) -> Figure | None`; None when there is no data."""
