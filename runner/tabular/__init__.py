"""What the notebooks of the `tabular` template call: a table read as columns.toml says, and a model judged by it.

Nothing heavy is imported before one of them is called. The rules of cleaning, the model and what its numbers mean stand
in the notebooks.
"""

from __future__ import annotations

from runner.tabular.alone import alone
from runner.tabular.blocks import parse_numbers, read_blocks
from runner.tabular.bootstrap import main_measure, measures, resample
from runner.tabular.columns import Columns, read_columns
from runner.tabular.confusion import draw_confusion
from runner.tabular.contributions import contributions, model_features, reasons
from runner.tabular.features import write_features
from runner.tabular.groups import draw_means, group_means
from runner.tabular.linear import linear_model
from runner.tabular.matrices import known_category, read_matrix
from runner.tabular.parts import (
    PartFiles,
    count_parts,
    draw,
    draw_rows,
    known_values,
    read_parts,
    sample_rows,
    write_parts,
)
from runner.tabular.repeats import Repeats, key_hashes, repeats, row_hashes
from runner.tabular.slices import slices
from runner.tabular.survey import Survey, survey
from runner.tabular.table import as_date, as_label, as_number, may_have_seen, only_file, read_rows, row_hash

__all__ = [
    "Columns",
    "PartFiles",
    "Repeats",
    "Survey",
    "alone",
    "as_date",
    "as_label",
    "as_number",
    "contributions",
    "count_parts",
    "draw",
    "draw_confusion",
    "draw_means",
    "draw_rows",
    "group_means",
    "key_hashes",
    "known_category",
    "known_values",
    "linear_model",
    "main_measure",
    "may_have_seen",
    "measures",
    "model_features",
    "only_file",
    "parse_numbers",
    "read_blocks",
    "read_columns",
    "read_matrix",
    "read_parts",
    "read_rows",
    "reasons",
    "repeats",
    "resample",
    "row_hash",
    "row_hashes",
    "sample_rows",
    "slices",
    "survey",
    "write_features",
    "write_parts",
]
