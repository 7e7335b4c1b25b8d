"""Models: folders that score raw records, their registered versions, and decisions on them.

What notebooks call stands here: `save`, `load`, `split`, `as_category`, `register`. Nothing heavy is imported before
one of them is called.
"""

from __future__ import annotations

from runner.model.folder import Model, load, save
from runner.model.request import register
from runner.model.signature import as_category
from runner.model.split import split

__all__ = ["Model", "as_category", "load", "register", "save", "split"]
