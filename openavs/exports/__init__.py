"""Results in the formats of other tools, one module per format; `registry.py` lists them."""
