"""Measuring a model: its loss on held-out text, and how well it compresses that text."""
