"""Reasoners: which of all candidates of a clip make its sounds."""
