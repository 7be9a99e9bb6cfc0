"""Model adapters, one folder per stage."""
