"""Label jobs: readers of sources, and the sink that writes labels."""
