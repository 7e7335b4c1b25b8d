"""A step as a processing job: what it is given, how it is made and followed, what happens inside it."""
