"""A target on this machine: the process that holds its address, and a process for each version behind it."""
