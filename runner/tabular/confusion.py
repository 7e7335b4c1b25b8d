"""A picture of which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

MOST_NUMBERED = 12  # classes, up to which each cell has its count


def draw_confusion(axes: Axes, truth: np.ndarray, chosen: np.ndarray, names: Sequence[object]) -> None:
    """Draw how often each class is taken for each: the darker, the larger a part of its row.

    `truth` and `chosen` have the numbers of classes, shape (n_rows,); `names` their names in that order. The counts
    of up to twelve classes stand in the picture.
    """
    import numpy as np

    size = len(names)
    counts = np.bincount(truth.astype("int64") * size + chosen, minlength=size * size).reshape(size, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour)
    short = [str(name)[:20] for name in names]
    axes.set_xticks(range(size), short, rotation=30 if size > 2 else 0)
    axes.set_yticks(range(size), short)
    axes.set(xlabel="predicted", ylabel="truth")
