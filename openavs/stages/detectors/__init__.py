"""Detectors: images and noun phrases to boxes."""
