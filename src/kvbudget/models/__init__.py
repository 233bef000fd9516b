"""Models: what a study names, how they get to disk, how they are checked and loaded."""
