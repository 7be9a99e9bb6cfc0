"""Published reference values of real checkpoints, through the adapters of this package."""
