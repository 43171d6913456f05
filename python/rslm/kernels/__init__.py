"""Kernels of the model: one module per algorithm, each with its gradient."""
