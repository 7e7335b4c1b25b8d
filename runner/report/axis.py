"""A numbered axis for small drawings: a few round numbers that span the values, and where a value lies among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with `ticks` between them as (value, text)."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    def at(self, value: float, width: float = 100.0) -> float:
        """Where the value lies, from 0 at `low` to `width` at `high`."""
        return round(width * (value - self.low) / (self.high - self.low), 2)


def axis(values: Sequence[float], *, most: int = 5, margin: float = 0.08) -> Axis:
    """The axis of finite values, of which there is at least one; it reaches beyond them by `margin` of their spread.

    Raises OverflowError or ValueError where their spread is not a finite number.
    """
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - margin * spread, high + margin * spread
    if not math.isfinite(high - low) or high <= low:
        raise ValueError(f"no axis spans {low} to {high}")
    rough = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(step * scale for step in STEPS if step * scale >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    digits = max(0, -math.floor(math.log10(step)) + (1 if round(step / scale, 1) == 2.5 else 0))
    return Axis(low, high, [(at * step, _text(at * step, digits)) for at in range(first, last + 1)])


def _text(value: float, digits: int) -> str:
    if abs(value) >= 1e6 or digits > 6:
        return f"{value:.3g}"
    return f"{value:,.{digits}f}"
