"""What is to run: the file, the notebooks' parameters and scraps, and the checks before anything starts."""
