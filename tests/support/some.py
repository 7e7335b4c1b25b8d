"""Of many cases of one kind, those that `make test` has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def some(values: Iterable[Any], kept: Collection[Any]) -> list[ParameterSet]:
    """All of them; those that are not kept run in `make soak` alone."""
    return [pytest.param(value, marks=[pytest.mark.soak] * (value not in kept)) for value in values]
