"""Trackers: the same thing over time."""
