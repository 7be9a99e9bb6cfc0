"""Trackers: the same object over time."""
