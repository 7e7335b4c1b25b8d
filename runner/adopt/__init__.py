"""Existing notebooks become steps: what they read, write, take and measure, by their code; nothing is executed."""
