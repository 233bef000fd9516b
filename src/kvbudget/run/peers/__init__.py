"""Cells that kvpress measures, in a Python of its own: it needs another transformers than ours."""
