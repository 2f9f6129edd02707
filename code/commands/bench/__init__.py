"""What the benchmark compares: rows, peers, sizes."""
