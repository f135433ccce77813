"""Scene → pixels → PNG."""
