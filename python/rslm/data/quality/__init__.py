"""Quality rules of the published recipes, as plain functions."""
