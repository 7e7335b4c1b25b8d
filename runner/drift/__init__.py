"""Drift: what has changed between the rows that a model was made with and those that it scores now.

What a monitoring notebook calls stands here. Statistics need numpy alone; a table's columns become counts first
(`reference_of`, `read_window`), so that ten million rows take the memory of a hundred thousand.
"""

from __future__ import annotations

from runner.drift.answers import auc, loss, mean, promise, share
from runner.drift.classifier import Separation, separation
from runner.drift.distance import Change, Comparison, Interval, compare, holm, psi, wasserstein
from runner.drift.labels import read_answers
from runner.drift.window import Requests, Window, read_window, reference_of, reference_rows, with_answers

__all__ = [
    "Change",
    "Comparison",
    "Interval",
    "Requests",
    "Separation",
    "Window",
    "auc",
    "compare",
    "holm",
    "loss",
    "mean",
    "promise",
    "psi",
    "read_answers",
    "read_window",
    "reference_of",
    "reference_rows",
    "separation",
    "share",
    "wasserstein",
    "with_answers",
]
