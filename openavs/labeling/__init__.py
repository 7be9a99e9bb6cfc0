"""Pseudo-label jobs: sources, a plan of shards, one function that works a shard off, engines around it."""
