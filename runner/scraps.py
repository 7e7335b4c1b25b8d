"""What a notebook calls to record its results: `metric`, `figure`, `table`.

Written with scrapbook, so that `scrapbook.read_notebook` reads them too: a metric's scrap is the plain number, as
`scrapbook.glue(name, number)` would write it; an interval or direction is a second scrap, `NAME.interval`; a table is
the scrap `NAME.table`; a figure is one of scrapbook's display outputs with alt text in its metadata.

Outside a kernel, in a plain script, the checks are the same and nothing is shown or recorded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_recorded: dict[str, str] = {}  # metric name -> the cell's source, for this kernel


def metric(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    better: Literal["higher", "lower"] | None = None,
) -> None:
    """Record a number under `name`, with the interval [`low`, `high`] and the better direction where they are known.

    Takes Python and numpy numbers. Raises TypeError for what is no number (booleans are none), ValueError for NaN,
    infinity, half or reversed intervals, a name that is no identifier, and a name recorded by another cell already.
    """
    if not name.isidentifier():
        raise ValueError(f"The metric's name {name!r} must be a Python name, as the gate writes it: step.name.")
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


def figure(name: str, fig: Figure, *, alt: str, caption: str = "") -> None:
    """Show a matplotlib figure under `name`, with `alt` text for who cannot see it, and close it.

    Raises ValueError where `alt` is empty.
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
            raw=True,
        )
    plt.close(fig)


def table(name: str, frame: pd.DataFrame, *, caption: str = "") -> None:
    """Show a table and record it under `name`: column names and rows, missing values as null."""
    import json

    if _shell() is None:
        return
    made = json.loads(frame.to_json(orient="split", index=False, double_precision=10))
    _show(frame)
    _glue(f"{name}.table", {"columns": [str(c) for c in made["columns"]], "rows": made["data"], "caption": caption})


def _number(name: str, value: Any) -> float | int:
    kind = type(value).__name__
    item = getattr(value, "item", None)
    plain = item() if callable(item) and getattr(value, "ndim", 0) == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise TypeError(f"Metric {name} is {value!r} ({kind}), which is no number.")
    if not math.isfinite(plain):
        raise ValueError(f"Metric {name} is {plain!r}, which is no finite number; a gate could not judge it.")
    return plain


def _once(name: str) -> None:
    """A cell that is run again by hand may record its metrics again; another cell may not."""
    shell = _shell()
    if shell is None:
        return
    history = shell.user_ns.get("In") or [""]
    cell = str(history[-1])
    if _recorded.setdefault(name, cell) != cell:
        raise ValueError(f"Metric {name} was recorded by another cell already; give this one a name of its own.")


def _glue(name: str, data: Any) -> None:
    if _shell() is None:
        return
    import scrapbook  # takes 0.4 s beside pandas: it imports papermill

    scrapbook.glue(name, data, "json")


def _show(*shown: Any, **how: Any) -> None:
    import IPython.display as ipython  # only where there is a kernel, and so IPython

    shower: Any = ipython.display
    shower(*shown, **how)


def _shell() -> Any:
    """The IPython shell of the kernel this runs in; None in a plain script."""
    import sys

    if "IPython" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    return shell if shell is not None and hasattr(shell, "kernel") else None
