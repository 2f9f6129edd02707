"""Masked modelling of EEG signals (arXiv 2306.16934, section 3.1)."""
