"""Making many pictures: jobs, processes, files."""
