"""What every stage needs once: run folders, atomic plain checkpoints, random draws, the training loop, one-sentence errors."""
