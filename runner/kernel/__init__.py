"""Kernels: choosing, starting and ending one, and what runs inside its process."""
