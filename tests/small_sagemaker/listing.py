"""What every List action does: filter by time, sort, cut into pages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any


def to_epoch(value: Any, default: float) -> float:
    """A time of a request in seconds since 1970."""
    if value is None:
        return default
    return float(value) if isinstance(value, int | float) else datetime.fromisoformat(value).timestamp()


def was_made_between(wanted: dict[str, Any], created: float, prefix: str = "CreationTime") -> bool:
    before, after = wanted.get(f"{prefix}Before"), wanted.get(f"{prefix}After")
    return to_epoch(after, 0.0) <= created <= to_epoch(before, float("inf"))


def sort(
    items: Iterable[dict[str, Any]], wanted: dict[str, Any], keys: dict[str, str], *, order: str = "Descending"
) -> list[dict[str, Any]]:
    """Sorted by the member that `keys` gives for SortBy; "" is the key of the default."""
    key = keys.get(wanted.get("SortBy", ""), keys[""])
    return sorted(items, key=lambda item: item[key], reverse=wanted.get("SortOrder", order) == "Descending")


def turn_page(items: list[dict[str, Any]], wanted: dict[str, Any], name: str) -> dict[str, Any]:
    """One page of a listing; its token is where the next one begins."""
    begin, most = int(wanted.get("NextToken") or 0), int(wanted.get("MaxResults") or 100)
    page: dict[str, Any] = {name: items[begin : begin + most]}
    if begin + most < len(items):
        page["NextToken"] = str(begin + most)
    return page
