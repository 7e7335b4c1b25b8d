"""What a notebook calls to record its results: `metric`, `figure`, `table`, and `report` on the way to a metric.

Written as scrapbook writes, so that `scrapbook.read_notebook` reads them too: a metric's scrap is the plain number, as
`scrapbook.glue(name, number)` would write it; an interval or direction is a second scrap, `NAME.interval`; a table is
the scrap `NAME.table`, the last report the scrap `NAME.report`; a figure is one of scrapbook's display outputs with alt
text in its metadata.

Outside a kernel, in a plain script, the checks are the same and nothing is shown or recorded.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_recorded: dict[str, tuple[str, int]] = {}  # metric name -> the cell and its execution, in this kernel
_reported: dict[str, int] = {}  # metric name -> the cell execution that shows its reports, in this kernel


def metric(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    better: Literal["higher", "lower"] | None = None,
) -> None:
    """Record a number under `name`, with the interval [`low`, `high`] and the better direction where they are known.

    Takes Python and numpy numbers. Raises TypeError for a value that is not a number (booleans are not), ValueError for
    NaN, infinity, incomplete or reversed intervals, a name that is not an identifier, and a name that another cell has
    recorded in this kernel, or the same cell twice.
    """
    _check_name(name)
    number = _number(name, value)
    if (low is None) != (high is None):
        raise ValueError(f"Metric {name}: give both low and high, or neither.")
    if better not in (None, "higher", "lower"):
        raise ValueError(f"Metric {name}: better is 'higher' or 'lower', not {better!r}.")
    interval: dict[str, Any] = {} if better is None else {"better": better}
    if low is not None and high is not None:
        interval |= {"low": _number(f"{name}'s low", low), "high": _number(f"{name}'s high", high)}
        if interval["low"] > interval["high"]:
            raise ValueError(f"Metric {name}: low {low} is above high {high}.")
    _once(name)
    _glue(name, number)
    if interval:
        _glue(f"{name}.interval", interval)


def report(name: str, value: float, step: int) -> None:
    """Say how far the metric `name` is after `step` rounds, epochs or the like, 0 or more.

    `runner sweep --trials` ends a trial that is worse than others were at that step; elsewhere the last value is shown.
    The metric itself is still recorded by `metric`, at the end. Takes values as `metric` does and raises as it does,
    TypeError for a step that is no whole number, ValueError for one below 0.
    """
    _check_name(name)
    number = _number(name, value)
    try:
        at = operator.index(step)
    except TypeError:
        raise TypeError(f"Metric {name}: step is {step!r}, which is not a whole number.") from None
    if at < 0:
        raise ValueError(f"Metric {name}: step is {at}, which is below 0.")
    shell = _shell()
    if shell is None:
        return
    first, _reported[name] = _reported.get(name) != shell.execution_count, shell.execution_count
    _glue(
        f"{name}.report",
        {"value": number, "step": at},
        text=f"{name} {number:.6g} at step {at}",
        display_id=f"runner.report.{name}.{shell.execution_count}",  # one line for each cell that reports
        update=not first,
    )


def figure(name: str, fig: Figure, *, alt: str, caption: str = "") -> None:
    """Show a matplotlib figure under `name`, with `alt` text for readers who cannot see it, and close it.

    Raises ValueError if `alt` is empty.
    """
    import base64
    import io

    import matplotlib.pyplot as plt

    if not alt.strip():
        raise ValueError(f"Figure {name}: alt text is needed; say in a sentence what the figure shows.")
    if _shell() is not None:
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        image = base64.b64encode(buffer.getvalue()).decode()
        _show(
            {"image/png": image, "text/plain": f"<{alt}>"},
            metadata={
                "image/png": {"alt": alt, "caption": caption},
                "scrapbook": {"name": name, "data": False, "display": True},
            },
        )
    plt.close(fig)


def table(name: str, frame: pd.DataFrame, *, caption: str = "") -> None:
    """Show a table and record it under `name`: column names and rows, missing values as null.

    A plain row number as index is left out; any other index becomes the first columns.
    """
    import json

    import pandas as pd

    if _shell() is None:
        return
    shown = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    content = json.loads(shown.to_json(orient="split", index=False, date_format="iso", double_precision=10))
    _show(
        {
            "text/html": shown.to_html(index=False, border=0, na_rep=""),
            "text/plain": shown.to_string(index=False, na_rep=""),
        }
    )
    columns = [str(column) for column in content["columns"]]
    _glue(f"{name}.table", {"columns": columns, "rows": content["data"], "caption": caption})


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"The metric's name {name!r} must be a Python name; the gate calls it step.name.")


def _number(name: str, value: Any) -> float:
    """The value as a plain float. numpy's scalars are recognised by their dtype, so that numpy is not imported."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        usable = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        usable = getattr(value, "ndim", None) == 0 and getattr(dtype, "kind", "") in ("i", "u", "f")
    if not usable:
        raise TypeError(f"Metric {name} is {value!r} ({type(value).__name__}), which is not a number.")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"Metric {name} is {value!r}, which is too large for a number.") from None
    if not math.isfinite(number):
        raise ValueError(f"Metric {name} is {number!r}, which is not finite; a gate could not judge it.")
    return number


def _once(name: str) -> None:
    """Refuse a second record of the name, unless the cell that made the first is run again."""
    shell = _shell()
    if shell is None:
        return
    header = shell.get_parent()
    # Jupyter sends the cell's id; papermill sends none, there the source stands for it
    cell = str(header.get("metadata", {}).get("cellId") or (shell.user_ns.get("In") or [""])[-1])
    before = _recorded.get(name)
    if before is not None and (before[0] != cell or before[1] == shell.execution_count):
        raise ValueError(f"Metric {name} was recorded already in this kernel; give this one a name of its own.")
    _recorded[name] = (cell, shell.execution_count)


def _glue(name: str, data: Any, *, text: str = "", **how: Any) -> None:
    """As `scrapbook.glue(name, data, "json")`, whose import takes one to four seconds; with `text` also shown."""
    scrap = {"name": name, "data": data, "encoder": "json", "version": 1}
    metadata = {"scrapbook": {"name": name, "data": True, "display": False}}
    if _shell() is not None:
        plain = {"text/plain": text} if text else {}
        _show({"application/scrapbook.scrap.json+json": scrap, **plain}, metadata=metadata, **how)


def _show(data: dict[str, Any], *, metadata: dict[str, Any] | None = None, **how: Any) -> None:
    from IPython.display import display  # in a notebook it is there already

    display(data, metadata=metadata or {}, raw=True, **how)  # type: ignore[no-untyped-call]


def _shell() -> Any:
    """The IPython shell of the kernel this runs in; None in a plain script."""
    import sys

    if "IPython" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return shell if shell is not None and hasattr(shell, "kernel") else None
