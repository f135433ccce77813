"""The contract: what a store is. Pure description and validation, no I/O, no arithmetic on data."""
