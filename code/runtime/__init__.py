"""What every stage needs once: run folders, checkpoints, draws, the training loop, errors."""
