"""How often the shipped monitor's gate raises a false alarm, and how often it finds a planted change and names it.

    python -m benchmarks.monitoring [--table FILE] [--splits 0-19] [--keep FOLDER]
    python -m benchmarks.monitoring --read FOLDER

Each split of the table gives three fifths of the customers to a model, which the notebooks' own cells make and judge,
and the others to windows of 1,000: ten drawn as they are, and one for each planted change. A window is looked at by the
cells of 05_monitor, with labels, and judged by the rules of monitor.toml. With `--keep` the rows stay there, for
`benchmarks/monitoring_peer.py`, which shows the same windows to evidently; `--read` counts what several such commands
left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import pandas as pd

from benchmarks.champion_rule import cells
from benchmarks.paths import ROOT
from benchmarks.seeds import OWN_TABLE, REAL_TABLE, seed_range
from runner.gate import judge
from runner.notebook.source import read_notebook
from runner.pipeline.plan import plan
from runner.records import Metric, Rule

KEY, ANSWER = "Phone", "Churn?"
CATEGORIES = ["State", "Area Code", "Int'l Plan", "VMail Plan"]
CHARGES = ["Day Charge", "Eve Charge", "Night Charge", "Intl Charge"]
ROWS, SAME_PER_SPLIT, PLANTED_PER_SPLIT = 1000, 10, 5
MODEL_SHARE = 0.6
SAME = "nothing"


def tariff(rows: pd.DataFrame, chance: np.random.Generator) -> str:
    """One of the four charges up by 20 %."""
    column = str(chance.choice(CHARGES))
    rows[column] *= 1.2
    return column


def renamed_plan(rows: pd.DataFrame, _: np.random.Generator) -> str:
    rows["Int'l Plan"] = rows["Int'l Plan"].replace({"yes": "international"})
    return "Int'l Plan"


def all_missing(rows: pd.DataFrame, chance: np.random.Generator) -> str:
    column = str(chance.choice([name for name in rows.columns if name not in (KEY, ANSWER)]))
    rows[column] = None
    return column


def state_gone(rows: pd.DataFrame, chance: np.random.Generator) -> str:
    """No customer of one state, whichever; others come in their place."""
    gone = rows["State"] == chance.choice(sorted(rows["State"].unique()))
    others = np.flatnonzero(~gone)
    rows.loc[gone] = rows.iloc[chance.choice(others, int(gone.sum()))].to_numpy()
    return "State"


def flipped_labels(rows: pd.DataFrame, chance: np.random.Generator) -> str:
    flip = chance.random(len(rows)) < 0.1
    rows.loc[flip, ANSWER] = rows.loc[flip, ANSWER].map({"True.": "False.", "False.": "True."})
    return ANSWER


PLANTED: dict[str, Callable[[pd.DataFrame, np.random.Generator], str]] = {
    "a charge up by 20 %": tariff,
    "a plan renamed": renamed_plan,
    "a column all missing": all_missing,
    "a state gone": state_gone,
    "10 % of the labels flipped": flipped_labels,
}


class Looked(msgspec.Struct, frozen=True):
    """What the monitor said of one window. `named`: the changed column is among those that it says have moved."""

    planted: str
    outcome: str
    named: bool
    rules: list[str]  # that failed
    moved: list[str]


class Line(msgspec.Struct, frozen=True):
    """Of windows.jsonl."""

    window: str
    column: str
    looked: Looked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=REAL_TABLE if REAL_TABLE.is_file() else OWN_TABLE)
    parser.add_argument("--splits", type=seed_range, default=range(20), metavar="FIRST-LAST")
    parser.add_argument("--keep", type=Path, help="a folder for the rows and a line of JSON for each window")
    parser.add_argument("--read", type=Path, help="count what is in such a folder; look at nothing")
    options = parser.parse_args()
    if options.read:
        finish(read(options.read))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when a cell imports xgboost; see benchmarks.seeds
    rules, looked, began = plan(ROOT / "monitor.toml").pipeline.gate, list[Looked](), time.process_time()
    with contextlib.ExitStack() as ends:
        folder = options.keep or Path(ends.enter_context(tempfile.TemporaryDirectory()))
        for number in options.splits:
            looked += split(options.table, number, rules, folder / f"{number:03}")
            print(f"split {number}: {time.process_time() - began:.0f} s of processor time", file=sys.stderr, flush=True)
    finish(looked)


def read(folder: Path) -> list[Looked]:
    lines = [line for file in sorted(folder.glob("*/windows.jsonl")) for line in file.read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=Line).looked for line in lines]


def finish(looked: list[Looked]) -> NoReturn:
    print("\n".join(table(looked)))
    sys.exit(0 if as_required(looked) else 1)


def split(table: Path, number: int, rules: list[Rule], folder: Path) -> list[Looked]:
    """A model, and all windows of the customers that it has not seen."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(number)
    customers = pd.read_csv(table, dtype=dict.fromkeys([*CATEGORIES, KEY, ANSWER], str), keep_default_na=False)
    customers = customers[~customers[KEY].duplicated(keep=False)]
    order = chance.permutation(len(customers))
    known = int(MODEL_SHARE * len(customers))
    made, others = customers.iloc[order[:known]], customers.iloc[order[known:]]
    parameters = modelled(made, number, folder)
    windows = [(SAME, f"same-{at}") for at in range(SAME_PER_SPLIT)]
    windows += [
        (name, f"planted-{at}-{again}") for at, name in enumerate(PLANTED) for again in range(PLANTED_PER_SPLIT)
    ]
    looked = []
    for planted, name in windows:
        rows = others.sample(ROWS, random_state=int(chance.integers(2**31)), ignore_index=True)
        column = PLANTED[planted](rows, chance) if planted != SAME else ""
        rows[[KEY, ANSWER]].to_csv(folder / f"{name}.csv", index=False)
        rows.drop(columns=ANSWER).to_parquet(folder / f"{name}.parquet", index=False)
        looked.append(look(planted, column, rules, {**parameters, "seed": int(chance.integers(2**31))}, folder / name))
        with (folder / "windows.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(Line(name, column, looked[-1])) + b"\n")
    return looked


def modelled(customers: pd.DataFrame, number: int, folder: Path) -> dict[str, Any]:
    """The parameters by which 05_monitor looks at a window: model, rows of its run, and what was promised."""
    source, rows = folder / "customers.csv", folder / "reference"
    rows.mkdir(exist_ok=True)
    customers.to_csv(source, index=False)
    sides = {side: str(rows / f"{side}.parquet") for side in ("train", "validation", "test")}
    cells("01_data", {"source": str(source), "split_seed": number, **sides})
    model = str(folder / "model")
    trained = {side: sides[side] for side in ("train", "validation")}
    cells("02_train", {**trained, "model": model, "split_seed": number, "seed": number})
    predictions = str(folder / "predictions.parquet")
    judged = cells("03_evaluate", {"test": sides["test"], "model": model, "seed": number, "predictions": predictions})
    promised = folder / "promised.json"
    metrics = {f"evaluate.{name}": value for name, value in judged["measured"].items()}
    promised.write_bytes(msgspec.json.encode({"version": "", "metrics": metrics}))
    return {"model": model, "reference": str(rows), "promised": str(promised)}


def look(planted: str, column: str, rules: list[Rule], parameters: Mapping[str, Any], window: Path) -> Looked:
    """The window by the notebook's cells, its last one among them, and by the gate."""
    metrics: dict[str, Metric] = {}

    def metric(name: str, value: float, **more: Any) -> None:
        metrics[f"monitor.{name}"] = Metric(value=float(value), **more)

    files = {"captured": f"{window}.parquet", "labels": f"{window}.csv", "changes": f"{window}.changes.parquet"}
    names = cells("05_monitor", {**parameters, **files})
    last = read_notebook(ROOT / "notebooks" / "05_monitor.ipynb").code[-1]
    exec(compile(last.source, "the last cell", "exec"), {**names, "metric": metric})
    verdict = judge(metrics, rules, present=["monitor.reference", "monitor.labels"])
    failed = [result.rule.metric for result in verdict.rules if result.outcome == "fail"]
    moved = [change.column for change in names["moved"]]
    losses = [rule for rule in failed if rule.endswith("_loss")]
    named = bool(losses) if column == ANSWER else column in moved
    return Looked(planted=planted, outcome=verdict.outcome, named=named, rules=failed, moved=moved)


def table(looked: list[Looked]) -> list[str]:
    """Markdown: windows by what was planted."""
    lines = ["| planted | windows | no | of these named | undecided | yes |", "|---|---:|---:|---:|---:|---:|"]
    for planted in (SAME, *PLANTED):
        windows = [one for one in looked if one.planted == planted]
        alarms = [one for one in windows if one.outcome == "fail"]
        named = sum(one.named for one in alarms) if planted != SAME else "–"
        undecided = sum(one.outcome not in ("fail", "pass") for one in windows)
        counts = (len(windows), len(alarms), named, undecided, sum(one.outcome == "pass" for one in windows))
        lines.append(f"| {planted} | {' | '.join(map(str, counts))} |")
    return lines


def as_required(looked: list[Looked]) -> bool:
    """At most 5 % alarms where nothing was planted; each change found and named in at least 95 %."""
    same = [one for one in looked if one.planted == SAME]
    if sum(one.outcome == "fail" for one in same) > 0.05 * len(same):
        return False
    for planted in PLANTED:
        windows = [one for one in looked if one.planted == planted]
        if sum(one.outcome == "fail" and one.named for one in windows) < 0.95 * len(windows):
            return False
    return True


if __name__ == "__main__":
    main()
