"""Many prompts: read from a file, captured one after the other into one store, by one process or several."""
