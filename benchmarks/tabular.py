"""The tabular template's test metric beside that of a tuned XGBoost, on the same rows of the same split.

    python -m benchmarks.tabular [--splits 3] [--trials 25] [--table NAME]

The template's side is its notebooks' own cells, as they ship. The tuned side draws settings at random, learns each on
the train side, stops and chooses on the validation side, and only then looks at the test side: what somebody does by
hand who takes the time. Telco and abalone are read from ../shared/data; the bank's table is drawn here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.paths import ROOT
from runner.notebook.source import read_notebook

NOTEBOOKS = ROOT / "runner" / "templates" / "tabular" / "notebooks"
SHARED = ROOT.parent / "shared" / "data"
FIRST_SPLIT = 200  # the template's settings were chosen on the splits 100 to 103


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--table", choices=("telco", "abalone", "bank"))
    parser.add_argument("--execute", nargs=2, metavar=("NOTEBOOK", "PARAMETERS"), help="one notebook; says its memory")
    options = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when a cell imports xgboost; see benchmarks.seeds
    if options.execute:
        executed(options.execute[0], **json.loads(options.execute[1]))
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(int(status.partition("VmHWM:")[2].split()[0]) // 1000)  # MB at most; getrusage counts the parent's too
        return
    print("| table | test rows | metric | linear | template | tuned | template − tuned, each split | mean |")
    print("|---|---:|---|---:|---:|---:|---|---:|", flush=True)
    tables = {"telco": telco, "abalone": abalone, "bank": bank}
    for name in [options.table] if options.table else tables:
        splits = [
            compared(tables[name], seed, options.trials) for seed in range(FIRST_SPLIT, FIRST_SPLIT + options.splits)
        ]
        means = {
            key: statistics.mean(split[key] for split in splits) for key in ("linear", "template", "tuned", "rows")
        }
        regression = splits[0]["metric"] == "rmse"
        gaps = [
            (one["tuned"] / one["template"] - 1) if regression else one["template"] - one["tuned"] for one in splits
        ]
        shown = [f"{100 * gap:+.1f} %" if regression else f"{gap:+.4f}" for gap in (*gaps, statistics.mean(gaps))]
        metric = "RMSE" if regression else "AUC"
        numbers = " | ".join(f"{means[key]:.4f}" for key in ("linear", "template", "tuned"))
        print(
            f"| {name} | {means['rows']:.0f} | {metric} | {numbers} | {', '.join(shown[:-1])} | {shown[-1]} |",
            flush=True,
        )


def compared(write: Any, seed: int, trials: int) -> dict[str, Any]:
    """Both test metrics, and the linear model's, on the split of this seed."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(folder)
        places = {side: str(folder / f"{side}.parquet") for side in ("train", "validation", "test")}
        columns, model = str(folder / "columns.toml"), str(folder / "model")
        executed("01_data", source=str(folder / "table.csv"), columns=columns, split_seed=seed, **places)
        learning = {side: places[side] for side in ("train", "validation")}
        scope = executed("02_train", **learning, columns=columns, model=model, split_seed=seed, seed=seed)
        judging = {side: places[side] for side in ("test", "train")}
        judged = executed(
            "03_evaluate", **judging, columns=columns, model=model, predictions=str(folder / "p.parquet"), resamples=2
        )
        ones = np.ones((1, len(judged["truth"])))
        test = judged["tabular"].model_features(model, pd.read_parquet(places["test"]))
        score = tuned(scope, test, seed, trials)
        candidates = {"linear": judged["simple"]["linear"], "template": judged["score"], "tuned": score}
        main_measure, task, truth = judged["tabular"].main_measure, judged["task"], judged["truth"]
        values = {name: float(main_measure(task, truth, one, ones)[0]) for name, one in candidates.items()}
        return {**values, "rows": len(judged["truth"]), "metric": judged["main"]}


def executed(notebook: str, **parameters: Any) -> dict[str, Any]:
    """The names that the notebook's cells leave. Outside a kernel nothing is shown or recorded."""
    scope: dict[str, Any] = {}
    for cell in read_notebook(NOTEBOOKS / f"{notebook}.ipynb").cells:
        if cell.kind == "code":
            exec(cell.source, scope)
            if "parameters" in cell.tags:
                scope.update(parameters)
    return scope


def tuned(scope: dict[str, Any], test: pd.DataFrame, seed: int, trials: int) -> np.ndarray:
    """The test rows' scores by the best of `trials` settings, by the loss on the validation side."""
    import xgboost as xgb

    chance, data, best = np.random.default_rng(seed), scope["data"], (np.inf, None)
    for _ in range(trials):
        settings = {
            **scope["settings"],
            "eta": float(np.exp(chance.uniform(np.log(0.01), np.log(0.2)))),
            "max_depth": int(chance.integers(2, 9)),
            "min_child_weight": float(np.exp(chance.uniform(0, np.log(20)))),
            "subsample": float(chance.uniform(0.5, 1)),
            "colsample_bytree": float(chance.uniform(0.4, 1)),
            "lambda": float(np.exp(chance.uniform(np.log(0.1), np.log(20)))),
            "gamma": float(chance.choice([0, 0, 0.5, 1, 3])),
        }
        watched = [(data["validation"], "validation")]
        booster = xgb.train(settings, data["train"], 2000, evals=watched, early_stopping_rounds=50, verbose_eval=False)
        if booster.best_score < best[0]:
            best = booster.best_score, booster[: booster.best_iteration + 1]
    return best[1].predict(xgb.DMatrix(test, enable_categorical=True)).astype("float64")


def written(folder: Path, frame: pd.DataFrame, kinds: dict[str, str], **table: str) -> None:
    """table.csv, and a columns.toml in which what is not named is a number, or a category where it is text."""
    frame.to_csv(folder / "table.csv", index=False)
    every = {name: kinds.get(name) or ("number" if frame[name].dtype.kind in "fiu" else "category") for name in frame}
    sections = {"table": table, "columns": every}
    text = [
        f"[{name}]\n" + "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in sections.items()
    ]
    (folder / "columns.toml").write_text("\n".join(text), encoding="utf-8")


def telco(folder: Path) -> None:
    frame = pd.read_csv(SHARED / "telco.csv")
    kinds = {"#": "ignore", "customerID": "key", "TotalCharges": "number", frame.columns[-1]: "target"}
    target = str(frame.columns[-1])
    written(folder, frame, kinds, target=target, task="binary", positive="Yes", key="customerID")


def abalone(folder: Path) -> None:
    frame = pd.read_csv(SHARED / "abalone.data")
    written(folder, frame, {"Rings": "target"}, target="Rings", task="regression", key="")


def bank(folder: Path) -> None:
    """10,000 customers with the columns of a well-known public table; who leaves is drawn by a rule with interactions."""
    chance, rows = np.random.default_rng(5), 10_000
    frame = pd.DataFrame({"CustomerId": 15_565_701 + chance.permutation(rows)})
    frame["CreditScore"] = chance.normal(650, 97, rows).clip(350, 850).astype(int)
    frame["Geography"] = chance.choice(["France", "Germany", "Spain"], rows, p=[0.5, 0.25, 0.25])
    frame["Gender"] = chance.choice(["Female", "Male"], rows)
    frame["Age"] = chance.gamma(14, 2.8, rows).clip(18, 92).astype(int)
    frame["Tenure"] = chance.integers(0, 11, rows)
    frame["Balance"] = np.where(chance.random(rows) < 0.36, 0, chance.normal(120_000, 30_000, rows)).round(2)
    frame["NumOfProducts"] = chance.choice([1, 2, 3, 4], rows, p=[0.51, 0.46, 0.025, 0.005])
    frame["HasCrCard"], frame["IsActiveMember"] = (chance.random((2, rows)) < [[0.7], [0.52]]).astype(int)
    frame["EstimatedSalary"] = chance.uniform(0, 200_000, rows).round(2)
    odds = -2.2 + 0.09 * np.minimum(frame["Age"] - 38, 18) - 1.1 * frame["IsActiveMember"] * (frame["Age"] > 35)
    odds += 0.9 * (frame["Geography"] == "Germany") + 0.5 * (frame["Gender"] == "Female")
    odds += 1.2 * (frame["NumOfProducts"] == 1) * (frame["Balance"] > 0) + 3 * (frame["NumOfProducts"] > 2)
    frame["Exited"] = (chance.random(rows) < 1 / (1 + np.exp(-odds))).astype(int)
    kinds = {"CustomerId": "key", "Exited": "target"}
    written(folder, frame, kinds, target="Exited", task="binary", positive="1", key="CustomerId")


if __name__ == "__main__":
    main()
