"""Notebooks as the production artifact: run, gate, register and report parameterized notebooks."""

__version__ = "0.1.0"
