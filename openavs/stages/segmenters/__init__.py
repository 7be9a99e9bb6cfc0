"""Segmenters: boxes or noun phrases to masks."""
