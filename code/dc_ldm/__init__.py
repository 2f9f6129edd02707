"""Latent diffusion conditioned on EEG (arXiv 2306.16934, sections 3.2 and 3.3)."""
