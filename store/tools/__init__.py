"""What is done with a finished store: packed, cut, merged. Each tool reads a store and writes a new one."""
