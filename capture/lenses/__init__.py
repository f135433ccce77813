"""Lenses: what a residual stream would say. One file each."""
