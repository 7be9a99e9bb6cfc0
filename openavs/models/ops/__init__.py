"""Optimized modules and operations of models."""
