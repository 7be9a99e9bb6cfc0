"""Data classes that pass between the stages, and masks."""
