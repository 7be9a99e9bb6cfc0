"""Tests of optional packages: each runs where its package is, which is an environment of its own.

`make test-packages` puts every package into a folder beside the core environment and runs its tests there; elsewhere
they skip.
"""
