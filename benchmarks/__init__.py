"""Figures: paired runs on this machine, medians, as ratios to the same code as one plain script."""
