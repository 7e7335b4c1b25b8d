"""features.py for a model whose raw records have numbers or dates in text: our fixed code, with the table's columns.

The code itself is features_code.py, which a model's folder keeps a copy of. Knows nothing of how a model is trained.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from runner.tabular.columns import Columns

if TYPE_CHECKING:
    import pandas as pd


def write_features(path: str | Path, records: pd.DataFrame, columns: Columns) -> ModuleType | None:
    """Write the module whose `transform(frame)` makes the model's columns of such raw records, and import it.

    None, and nothing is written, where the records are the model's columns as they are: then serving needs no pandas.
    Equal columns give equal bytes.
    """
    import pandas as pd

    dates = {name: columns.dates[name] for name in records if columns.kinds[name] == "date"}
    numbers = [name for name in columns.numbers if name in records and not pd.api.types.is_numeric_dtype(records[name])]
    if not dates and not numbers:
        return None
    code = Path(__file__).with_name("features_code.py").read_text(encoding="utf-8")
    for name, empty, value in (
        ("DATES: dict[str, str]", "{}", dates),
        ("NUMBERS: list[str]", "[]", numbers),
        ("DECIMAL", '"."', columns.table.decimal),
        ("MISSING: list[str]", "[]", columns.table.missing),
    ):
        code = code.replace(f"\n{name} = {empty}\n", f"\n{name} = {value!r}\n", 1)
    path = Path(path)
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("features", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
