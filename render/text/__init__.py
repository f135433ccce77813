"""The words of a picture: legible tokens, texts of cells."""
