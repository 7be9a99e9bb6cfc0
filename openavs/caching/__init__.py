"""Outputs of stages, cached on disk."""
