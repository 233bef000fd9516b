"""Kernels of a decode step: attention straight from the slots of a layer."""
