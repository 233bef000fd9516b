"""How fast and how small the cache is, as ratios within one run on one machine."""
