"""Scaling laws: points, the laws fitted to them, and how far they can be trusted. No torch."""
