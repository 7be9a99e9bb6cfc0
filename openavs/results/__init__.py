"""Results as JSON and as folders."""
