"""Model references, loading, devices, memory and optimized modules."""
