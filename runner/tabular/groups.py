"""The mean answer in each group of a column's values, as numbers and as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.tabular.columns import Task

if TYPE_CHECKING:
    import pandas as pd

BINS = 10  # of a column of numbers with more values
MOST_GROUPS, MOST_ANSWERS = 12, 6
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")


def group_means(column: pd.Series, answers: pd.Series, task: Task) -> pd.DataFrame:
    """Per group of `column` (a value, or a tenth of its numbers) the mean answer, in the groups' order.

    Of several answers the share of each of the six commonest. The twelve largest groups; those that have names are
    ordered by their first mean. `column` and `answers` have the same index.
    """
    import pandas as pd

    groups = column.astype("object").where(column.notna(), "missing").astype("str")
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > BINS:
        parts = pd.qcut(column, BINS, duplicates="drop")
        groups = parts.cat.rename_categories(lambda part: part.mid).astype("float64")
    outcome = pd.get_dummies(answers) if task == "multiclass" else answers.to_frame()
    outcome = outcome[outcome.sum().nlargest(MOST_ANSWERS).index]
    means = outcome.groupby(groups).mean()
    means = means.loc[groups.value_counts().loc[means.index].nlargest(MOST_GROUPS).index]
    ordered = pd.api.types.is_numeric_dtype(means.index)
    return means.sort_index() if ordered else means.sort_values(means.columns[0])


def draw_means(ax: Any, means: pd.DataFrame) -> None:
    """Draw `group_means` on the axes, a line with marks for each answer."""
    import pandas as pd

    for (name, values), colour, mark in zip(means.items(), COLOURS, MARKS, strict=False):
        ax.plot(means.index, values, mark, linestyle="-", color=colour, label=str(name))
    ax.tick_params(axis="x", rotation=0 if pd.api.types.is_numeric_dtype(means.index) else 30)
