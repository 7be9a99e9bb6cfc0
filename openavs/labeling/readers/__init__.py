"""Readers of the sources of label jobs."""
