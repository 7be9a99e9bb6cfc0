"""Answers of stages on disk."""
