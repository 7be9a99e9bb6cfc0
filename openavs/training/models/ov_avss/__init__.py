"""OV-AVSS, the open-vocabulary student."""
