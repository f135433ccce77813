"""index.html beside the pictures."""
