"""TPAVI, the baseline student of AVSBench."""
