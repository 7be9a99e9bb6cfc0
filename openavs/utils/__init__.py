"""Helpers without knowledge of models or media."""
