"""Results in the formats of other tools, one small file per format. `registry.py` lists them; nothing heavy is imported
here, because the command line names the formats in its help."""
