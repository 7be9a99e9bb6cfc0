"""The clip runner: opens clips, runs a pipeline over them, writes, records and resumes."""
