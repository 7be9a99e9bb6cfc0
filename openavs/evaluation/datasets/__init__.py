"""Readers of the benchmarks."""
