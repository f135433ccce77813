"""The viewer: a page that reads a store in the browser, served here, saved as one file, or shown in a notebook."""
