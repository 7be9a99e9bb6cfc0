"""OV-AVSS."""
