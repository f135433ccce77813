"""The store: writer, reader and the tools that check a store. The only code that touches zarr."""
