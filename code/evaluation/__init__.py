"""From test trials to a page: sampling through the seam, controls, scores, statistics and the verdict."""
