"""Numbers and sentences that every study has, whatever it measured and however it came out.

One part of the paper a module; each has `derived(src) -> (key, LaTeX) pairs`. A sentence that says
which way a result went is computed here from comparisons.csv, so the prose cannot claim what the
data do not show.
"""
