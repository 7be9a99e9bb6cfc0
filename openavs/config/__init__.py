"""Recipes and the options of backends."""
