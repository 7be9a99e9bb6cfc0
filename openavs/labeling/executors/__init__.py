"""Executors of label jobs."""
