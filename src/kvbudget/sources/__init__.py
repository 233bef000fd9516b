"""Where models and texts come from: fetched, checked, loaded. Nothing here measures."""
