"""How often the gate's champion rule lets an equally good challenger pass, and how often a clearly worse one.

    python -m benchmarks.champion_rule [--table FILE] [--pairs 100]

The notebooks' own cells do the work, in this process: 01_data splits (a split of its own for each pair), 02_train
trains, 03_evaluate compares; only cells that show or record something are left out. The rule is the one in
pipeline.toml, the verdict `runner.gate.judge`'s. Champion and challenger share the split, so that the whole test side
is unseen by both; they differ in `seed` and in the bootstrap of the training side that each has learnt from.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from benchmarks.paths import ROOT
from benchmarks.seeds import OWN_TABLE, REAL_TABLE
from runner.gate import judge
from runner.notebook.source import read_notebook
from runner.pipeline.plan import plan
from runner.records import Metric, Rule

METRIC, CHAMPION = "evaluate.auc_gain", "evaluate.champion"
SHOWS = ("figure(", "table(", "metric(")  # a cell that calls one of these computes nothing for others
CHALLENGERS: dict[str, dict[str, Any]] = {
    "equally good": {},
    "a little worse": {"rounds": 5},
    "clearly worse": {"rounds": 8, "max_depth": 2},
}
REQUIRED = {"equally good": (0.95, 1.0), "clearly worse": (0.0, 0.05)}  # least and most share of pairs that pass


class Compared(msgspec.Struct, frozen=True):
    """One challenger against one champion: the test AUC gained, with its interval, and the rule's word on it."""

    champion_auc: float
    gain: float
    low: float
    high: float
    outcome: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="customer table (the shipped one, and the real one where it is)")
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args()
    tables = [options.table] if options.table else [OWN_TABLE, *([REAL_TABLE] if REAL_TABLE.is_file() else [])]
    rule = champion_rule()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when a cell imports xgboost; see benchmarks.seeds
    print("| table | challenger | champion's AUC | mean gain | mean interval | pass | inconclusive | fail | required |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    met = True
    for table in tables:
        pairs = [compared_pair(table, number, rule) for number in range(options.pairs)]
        for name in CHALLENGERS:
            found = [pair[name] for pair in pairs]
            print(summary(table.name, name, found), flush=True)
            met = met and as_required(name, found)
    sys.exit(0 if met else 1)


def champion_rule() -> Rule:
    """The rule in pipeline.toml against the approved version."""
    rules = [rule for rule in plan(ROOT / "pipeline.toml").pipeline.gate if rule.metric == METRIC]
    if len(rules) != 1:
        raise SystemExit(f"pipeline.toml has {len(rules)} rules on {METRIC}; this measures exactly one.")
    return rules[0]


def compared_pair(table: Path, number: int, rule: Rule) -> dict[str, Compared]:
    """A champion and each kind of challenger, on split `number` and with seeds that no other pair has."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sides = {side: str(folder / f"{side}.parquet") for side in ("train", "validation", "test")}
        cells("01_data", {"source": str(table.resolve()), "split_seed": number, **sides})
        champion = trained(folder / "champion", sides, split_seed=number, seed=10 * number)
        found = {}
        for place, (name, recipe) in enumerate(CHALLENGERS.items(), start=1):
            model = trained(
                folder / f"challenger-{place}", sides, split_seed=number, seed=10 * number + place, **recipe
            )
            given = {"test": sides["test"], "model": model, "champion": champion, "seed": number}
            evaluated = cells("03_evaluate", {**given, "predictions": str(folder / "predictions.parquet")})
            value, low, high = (evaluated["gain"][part] for part in ("value", "low", "high"))
            verdict = judge({METRIC: Metric(value=value, low=low, high=high)}, [rule], present=[CHAMPION])
            auc = evaluated["measured"]["auc"]["value"] - value
            found[name] = Compared(champion_auc=auc, gain=value, low=low, high=high, outcome=verdict.outcome)
    return found


def trained(model: Path, sides: Mapping[str, str], *, split_seed: int, seed: int, **recipe: Any) -> str:
    """The folder of a model trained by 02_train on a bootstrap of the training side, drawn with `seed`."""
    learnt = pd.read_parquet(sides["train"])
    drawn = model.with_name(f"{model.name}.parquet")
    learnt.sample(frac=1, replace=True, random_state=seed).to_parquet(drawn, index=False)
    places = {"train": str(drawn), "validation": sides["validation"], "model": str(model)}
    cells("02_train", {**places, "split_seed": split_seed, "seed": seed, **recipe})
    return str(model)


def cells(notebook: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The names that the notebook's computing cells leave behind, run with `parameters` in place of its defaults."""
    source = read_notebook(ROOT / "notebooks" / f"{notebook}.ipynb")
    unknown = parameters.keys() - source.parameters.keys()
    if unknown:
        raise SystemExit(f"{source.path} declares no {sorted(unknown)}.")
    names: dict[str, Any] = {"__name__": notebook}
    for cell in source.code:
        if any(call in cell.source for call in SHOWS):
            continue
        exec(compile(cell.source, f"{source.path} [{cell.number}]", "exec"), names)
        if "parameters" in cell.tags:
            names.update(parameters)
    return names


def summary(table: str, challenger: str, found: list[Compared]) -> str:
    """A line of the Markdown table: pairs by outcome; a gain is the challenger's test AUC minus the champion's."""
    outcomes = Counter(pair.outcome for pair in found)
    counts = " | ".join(f"{outcomes[outcome]}" for outcome in ("pass", "inconclusive", "fail"))
    champion = statistics.fmean(pair.champion_auc for pair in found)
    gain = statistics.fmean(pair.gain for pair in found)
    half = statistics.fmean((pair.high - pair.low) / 2 for pair in found)
    return (
        f"| {table} | {challenger} | {champion:.4f} | {gain:+.4f} | ± {half:.4f} | {counts} | "
        f"{_required(challenger, found)} |"
    )


def _required(challenger: str, found: list[Compared]) -> str:
    if challenger not in REQUIRED:
        return ""
    least, most = REQUIRED[challenger]
    asked = f"at least {least:.0%}" if least else f"at most {most:.0%}"
    return f"{asked} pass: {'met' if as_required(challenger, found) else 'NOT met'}"


def as_required(challenger: str, found: list[Compared]) -> bool:
    least, most = REQUIRED.get(challenger, (0.0, 1.0))
    return least <= sum(pair.outcome == "pass" for pair in found) / len(found) <= most


if __name__ == "__main__":
    main()
