"""Model references, loading, devices and memory."""
