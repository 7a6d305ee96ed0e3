"""Building blocks that every model shares: attention and masks, caches, positions, norms, convolutions."""
