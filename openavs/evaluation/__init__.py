"""Benchmarks: data sets, metrics, scores, comparison, ablation studies and reports."""
