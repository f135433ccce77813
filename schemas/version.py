"""Name and version of the store format, stamped into every store from here and nowhere else."""

FORMAT = "attnlens"
FORMAT_VERSION = 1
NAMESPACE = "attnlens"
"""The one attribute key under which a Zarr group or array of a store keeps what is ours."""
