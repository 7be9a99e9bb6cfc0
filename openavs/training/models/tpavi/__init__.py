"""TPAVI."""
