"""Kernels forked from a process that has imported the notebooks' libraries. Linux only."""
