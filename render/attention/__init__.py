"""The numbers of a picture: heads reduced, scales applied."""
