"""The scripts that train the `tiny` family on the synthetic world, on CPU, deterministic under their seeds."""
