"""One notebook file: its cells, its parameters and their types, what it recorded, what a commit keeps of it."""
