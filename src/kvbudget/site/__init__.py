"""The page of results: one static HTML file of a finished study, with all that it needs inside."""
