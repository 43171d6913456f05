"""Measuring a model: its loss on texts, and how it does on tasks; marking what it answers."""
