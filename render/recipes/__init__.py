"""What a picture carries to be drawn again, and drawing it again."""
