"""Model adapters, one folder a stage."""
