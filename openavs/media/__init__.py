"""Video and sound through PyAV: probe, decode, sample, write. Files are local; nothing is held but what is in use."""
