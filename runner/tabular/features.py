"""features.py for a model whose raw records are not what XGBoost takes: our fixed code, with the table's columns.

The code itself is features_code.py, which a model's folder keeps a copy of. Knows nothing of how a model is trained.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from runner.errors import UsageError
from runner.tabular.columns import Columns
from runner.tabular.features_code import SAFE

if TYPE_CHECKING:
    import pandas as pd


def write_features(path: str | Path, records: pd.DataFrame, columns: Columns) -> ModuleType | None:
    """Write the module whose `transform(frame)` makes the model's columns of such raw records, and import it.

    None, and nothing is written, where the records are the model's columns as they are: then serving needs no pandas.
    Equal columns give equal bytes. Raises UsageError where two columns would have one name.
    """
    import pandas as pd

    dates = {name: columns.dates[name] for name in records if columns.kinds[name] == "date"}
    numbers = [name for name in columns.numbers if name in records and not pd.api.types.is_numeric_dtype(records[name])]
    if not dates and not numbers and all(name.translate(SAFE) == name for name in records):
        return None
    made = [
        name.translate(SAFE) + (f" ({part})" if part else "")  # as features_code.dates names them
        for name in records
        for part in (("days", "month", "weekday", *["hour"] * ("%H" in dates[name])) if name in dates else ("",))
    ]
    if twice := [name for name, count in Counter(made).items() if count > 1]:
        raise UsageError(
            f"Two columns would be called {twice[0]} by the model, which takes no [, ] or < and makes such columns of "
            "dates. Rename one."
        )
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
