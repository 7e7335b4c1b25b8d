"""Scoring by approved versions: files of records, and over HTTP, by the same code as in an endpoint's container."""
