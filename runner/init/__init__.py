"""A new project: what a table looks like, and the files that a project begins with."""
