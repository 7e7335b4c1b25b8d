"""`python -m benchmarks.onnx`: pipelines of scikit-learn as ONNX, for docs/models.md.

How far the scores of a saved folder are from scikit-learn's on 10,000 rows, and one record over HTTP: one worker of
`runner serve` beside FastAPI with the pipeline itself, asked in turn, each on the same core. Ratios are within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import runner.model
from benchmarks.measuring import machine, table, write_between
from benchmarks.paths import ROOT
from benchmarks.serving import PEERS, Load, Running, median, put_load, wait
from runner.content import artifact
from runner.model.registry import LocalRegistry
from runner.model.versions import NewVersion

ROWS, CLIENTS, LEAST = 10_000, 8, 3.0
PAGE, BEGIN, END = ROOT / "docs" / "models.md", "<!-- written by benchmarks.onnx -->\n", "<!-- end -->\n"
OURS, FASTAPI = "runner serve, onnxruntime", "FastAPI, scikit-learn"
CLASSIFIERS = [
    LogisticRegression(max_iter=1000),
    RandomForestClassifier(100, max_depth=10, random_state=1),
    GradientBoostingClassifier(random_state=1),
    HistGradientBoostingClassifier(random_state=1),
    MLPClassifier((32,), random_state=1, max_iter=60),
]
REGRESSORS = [
    LinearRegression(),
    RandomForestRegressor(50, max_depth=10, random_state=1),
    HistGradientBoostingRegressor(random_state=1),
]
SERVED = [0, 1]  # of the classifiers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of a network that could learn longer
    frame, churned = records()
    with tempfile.TemporaryDirectory() as scratch:
        lines = differences(Path(scratch), frame, churned)
        missed = []
        for at in SERVED:
            served, slower = serving(Path(scratch), frame, churned, CLASSIFIERS[at], options.rounds, options.seconds)
            lines += served
            missed += [slower] if slower else []
    lines.append(f"Missed: {'; '.join(missed)}." if missed else f"At least {LEAST:g} × were wanted.")
    print("\n".join(lines))
    if options.write:
        write_between(PAGE, BEGIN, END, "\n".join([machine(), "", *lines]))
    sys.exit(1 if missed else 0)


def records() -> tuple[pd.DataFrame, pd.Series]:
    """10,000 customers drawn from the table that ships, with some other minutes each and with gaps; who left."""
    chance = np.random.default_rng(7)
    drawn = pd.read_csv(ROOT / "data" / "churn.csv").sample(ROWS, replace=True, random_state=7, ignore_index=True)
    left = drawn.pop("Churn?").astype("str").str.contains("True")
    frame = drawn.drop(columns=["Phone"])
    for name in [one for one in frame.columns if one.endswith(("Mins", "Charge"))]:
        frame[name] = (frame[name] * chance.normal(1, 0.05, ROWS)).round(4)
    frame.loc[chance.random(ROWS) < 0.05, "Day Mins"] = np.nan
    frame.loc[chance.random(ROWS) < 0.05, "State"] = None
    return frame, left


def pipeline(frame: pd.DataFrame, model: Any) -> Any:
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    numbers = [name for name in frame.columns if name not in texts]
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_pipeline(
        ColumnTransformer(
            [
                ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
                ("texts", make_pipeline(SimpleImputer(strategy="most_frequent"), encoder), texts),
            ]
        ),
        model,
    )


def differences(folder: Path, frame: pd.DataFrame, churned: pd.Series) -> list[str]:
    """A line for each estimator."""
    rows = []
    charge = frame["Day Mins"].fillna(0) * 0.17 + frame["Eve Mins"] * 0.085
    for model, answers in [*((one, churned) for one in CLASSIFIERS), *((one, charge) for one in REGRESSORS)]:
        pipe = pipeline(frame, model).fit(frame, answers)
        runner.model.save(folder / "model", pipe, frame, target="y")
        scores = runner.model.load(folder / "model").predict(frame).astype("float64")
        wanted = pipe.predict_proba(frame)[:, 1] if hasattr(pipe, "predict_proba") else pipe.predict(frame)
        apart = np.abs(scores - wanted)
        relative = (apart / np.maximum(np.abs(wanted), 1e-3)).max()
        rows.append([type(model).__name__, f"{apart.max():.1e}", f"{relative:.1e}"])
    head = [f"on {ROWS:,} rows", "largest difference", "part of the score"]
    return ["**From scikit-learn's own scores**", "", *table(head, rows), ""]


def serving(
    folder: Path, frame: pd.DataFrame, churned: pd.Series, model: Any, rounds: int, seconds: float
) -> tuple[list[str], str]:
    """The lines of one pipeline, and what is missed."""
    pipe = pipeline(frame, model).fit(frame, churned)
    project = folder / type(model).__name__
    approved(project, pipe, frame)
    joblib.dump(pipe, project / "pipeline.joblib")
    record = json.loads(frame.iloc[[3]].to_json(orient="records"))
    cores = sorted(os.sched_getaffinity(0))
    peers = str(Path(__file__).with_name("serving_peers.py"))
    commands = {
        OURS: [sys.executable, "-m", "runner", "serve", "bench", "--workers", "1", "--port", "18100"],
        FASTAPI: [str(PEERS), peers, "sklearn", "18110", str(project / "pipeline.joblib")],
    }
    started: list[Running] = []
    try:
        for name, command in commands.items():
            log = open(project / f"{len(started)}.log", "wb")  # noqa: SIM115  # the process has it
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                ["taskset", "-c", str(cores[0]), *command], cwd=project, env=environment, stdout=log, stderr=log
            )
            started.append(Running(name, process, 18100 + 10 * len(started), 0))
            wait(started[-1].port, process, project / f"{len(started) - 1}.log")
        os.sched_setaffinity(0, {cores[-1]})
        body = json.dumps(record)
        head = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(body.encode())}"
        sent = f"POST /invocations HTTP/1.1\r\n{head}\r\n\r\n{body}".encode()
        loads: dict[str, list[Load]] = {name: [] for name in commands}
        for round_ in range(rounds + 1):  # the first warms caches and is not counted
            for server in started:
                load = asyncio.run(put_load(server, sent, CLIENTS, seconds))
                loads[server.name] += [load] if round_ else []
    finally:
        os.sched_setaffinity(0, cores)
        for server in started:
            server.process.terminate()
        for server in started:
            server.process.wait(60)
    rows = [
        [name, *(f"{median(one, key):,.{digits}f}" for key, digits in (("per_s", 0), ("cpu_us", 0), ("p99_ms", 1)))]
        for name, one in loads.items()
    ]
    pairs = list(zip(loads[OURS], loads[FASTAPI], strict=True))
    faster = statistics.median(ours.per_s / theirs.per_s for ours, theirs in pairs)
    cheaper = statistics.median(theirs.cpu_us / ours.cpu_us for ours, theirs in pairs)
    title = f"**One record, {len(frame.columns)} columns, {type(model).__name__}, {CLIENTS} clients**"
    said = f"runner serve answers {faster:.1f} × as many, with {cheaper:.1f} × less processor time each."
    lines = [title, "", *table(["", "requests/s", "CPU µs", "p99 ms"], rows), "", said, ""]
    return lines, "" if faster >= LEAST else f"{type(model).__name__}: {faster:.1f} ×, not {LEAST:g} ×"


def approved(project: Path, pipe: Any, frame: pd.DataFrame) -> None:
    """A project with an approved version."""
    run = time.strftime("%Y%m%d-%H%M%S-0000")
    place = project / "runs" / run / "steps/train/out/model"
    place.parent.mkdir(parents=True)
    runner.model.save(place, pipe, frame, target="churn", positive="1")
    (project / "pipeline.toml").write_text('name = "bench"\n[steps.train]\nnotebook = "train.ipynb"\n')
    saved = artifact(place, name="steps/train/out/model")
    registry = LocalRegistry(project / "runs/registry.db")
    registry.register(NewVersion(name="bench", run=run, sha256=saved.sha256, artifact=saved, created_by="benchmark"))
    registry.decide("bench", 1, "approved", who="benchmark", why="benchmark")


if __name__ == "__main__":
    main()
