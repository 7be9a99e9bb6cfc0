"""The algorithm and what serves it."""
