"""Which tokens, layers and columns: what a user's lists and slices name."""
