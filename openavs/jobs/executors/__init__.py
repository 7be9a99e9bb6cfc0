"""Executors of a job: in this process, in worker processes, on a Ray cluster."""
