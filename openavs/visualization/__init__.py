"""Overlays, reports and colors."""
