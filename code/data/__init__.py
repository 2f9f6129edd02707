"""What lies on disk and how it is read: recordings, trials files, splits, the pictures that were shown."""
