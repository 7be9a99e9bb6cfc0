"""Corrections: changes of results by a person, and their records."""
