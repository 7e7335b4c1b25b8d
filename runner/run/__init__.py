"""One run: order its steps, give each what it needs, seal what comes out, judge, and have it registered."""
