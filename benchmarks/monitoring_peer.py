"""The windows that `python -m benchmarks.monitoring --keep FOLDER` leaves, as evidently sees them.

    python benchmarks/monitoring_peer.py FOLDER [WINDOWS]

WINDOWS is how many of each kind it sees in each split; all where it is left out. For an environment that has evidently
and pandas 2. Its data drift preset with its defaults, on the columns of the model: *columns*
counts windows of which it flags at least one column, *table* those that it calls drifted as a whole, *named* those of
which it flags the column that was changed. Labels are no part of it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

CATEGORIES = ["State", "Area Code", "Int'l Plan", "VMail Plan"]
KEY, ANSWER = "Phone", "Churn?"


def main() -> None:
    warnings.simplefilter("ignore")
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    most = int(sys.argv[2]) if len(sys.argv) > 2 else sys.maxsize
    began = time.process_time()
    for file in sorted(Path(sys.argv[1]).glob("*/windows.jsonl")):
        rows = file.parent / "reference"
        before = pd.concat([pd.read_parquet(rows / f"{side}.parquet") for side in ("train", "validation")])
        seen = Counter[str]()
        for line in file.read_text().splitlines():
            window = json.loads(line)
            seen[window["looked"]["planted"]] += 1
            if seen[window["looked"]["planted"]] > most:
                continue
            now = pd.read_parquet(file.parent / f"{window['window']}.parquet")
            flagged, whole = drifted(before.drop(columns=[KEY, ANSWER]), now.drop(columns=KEY))
            about = counts[window["looked"]["planted"]]
            about["windows"] += 1
            about["columns"] += bool(flagged)
            about["table"] += whole
            about["named"] += window["column"] in flagged
        print(f"{file.parent.name}: {time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
    print("| planted | windows | columns | table | named |\n|---|---:|---:|---:|---:|")
    for planted, about in counts.items():
        print(
            f"| {planted} | " + " | ".join(str(about[name]) for name in ("windows", "columns", "table", "named")) + " |"
        )
    print(f"\n{time.process_time() - began:.0f} s of processor time")


def drifted(before: pd.DataFrame, now: pd.DataFrame) -> tuple[set[str], bool]:
    """The columns that it flags, and whether it calls the table drifted."""
    numbers = [name for name in before.columns if name not in CATEGORIES]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=CATEGORIES)
    tables = []
    for frame in (now, before):
        typed = frame.astype(dict.fromkeys(CATEGORIES, "string")).astype(dict.fromkeys(CATEGORIES, "object"))
        typed[numbers] = typed[numbers].apply(pd.to_numeric, errors="coerce")
        tables.append(Dataset.from_pandas(typed.reset_index(drop=True), data_definition=definition))
    try:
        found = Report([DataDriftPreset()]).run(*tables).dict()["metrics"]
    except ValueError:  # a column without any value
        return {name for name in now.columns if now[name].isna().all()}, False
    flagged, whole = set(), False
    for metric in found:
        config = metric["config"]
        if config["type"].endswith("DriftedColumnsCount"):
            whole = metric["value"]["share"] >= config["drift_share"]
        elif config["type"].endswith("ValueDrift"):
            below = "p_value" in config["method"]
            value = float(metric["value"])
            if value < config["threshold"] if below else value >= config["threshold"]:
                flagged.add(config["column"])
    return flagged, whole


if __name__ == "__main__":
    main()
