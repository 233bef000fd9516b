"""Memory and time, on CPU and CUDA."""
