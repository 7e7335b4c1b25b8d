"""A project whose version serves, as its history says, and what its target captured."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import runner.model
from runner.model.registry import LocalRegistry
from support.places import free_ports
from support.projects import ROOT, Project, parameters
from support.served import Client

CUSTOMERS = '''
import numpy as np
import pandas as pd

def customers(rows, seed):
    """Raw records with the key `phone` and the answer `left`."""
    chance = np.random.default_rng(seed)
    made = pd.DataFrame({
        "phone": [f"{seed}-{row:05}" for row in range(rows)],
        "minutes": chance.normal(180, 50, rows).round(1),
        "calls": chance.integers(0, 10, rows),
        "plan": chance.choice(["basic", "gold", "silver"], rows, p=[0.5, 0.3, 0.2]),
        "roaming": chance.random(rows) < 0.3,
    })
    made["left"] = (made["calls"] + 2 * (made["plan"] == "gold") + chance.normal(0, 0.6, rows) > 5.5).astype(int)
    return made
'''
LEARN = """
import xgboost as xgb
import runner.model
from runner import drift
from runner.scraps import metric
seed, _, factor = open(source).read().partition(" ")
rows = customers(2400, int(seed)).astype({"plan": "category"})
rows["minutes"] *= float(factor or 1)
learnt, held = rows[:1600], rows[1600:]
raw = {name: part.drop(columns=["phone", "left"]) for name, part in (("learnt", learnt), ("held", held))}
settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
booster = xgb.train(settings, xgb.DMatrix(raw["learnt"], learnt["left"], enable_categorical=True), 20)
runner.model.save(model, booster, raw["learnt"], target="left", positive="yes", key="phone", reference=raw["held"])
rows.to_parquet(table)
"""
JUDGE = """
scores = runner.model.load(model).predict(raw["held"])
auc = drift.auc(held["left"], scores)
accuracy = drift.share(int(((scores >= 0.5) == (held["left"] == 1)).sum()), len(held))
metric("auc", **vars(auc), better="higher")
metric("accuracy", **vars(accuracy), better="higher")
runner.model.register(model)
"""
TOML = """
name = "tiny"
[steps.train]
notebook = "train.ipynb"
inputs = { source = "./day.txt" }
outputs = { model = "model/", table = "table.parquet" }
[[gate]]
metric = "train.auc"
min = 0.7
[model]
name = "tiny"
from = "train.model"
[targets.production]
kind = "local"
port = PORT
workers = 1
capture = { percent = 100, keep = ["phone"] }
"""
HOUR = timedelta(hours=1)


def customers(rows: int, seed: int) -> pd.DataFrame:
    """As the notebook makes them."""
    names: dict[str, Any] = {}
    exec(CUSTOMERS, names)
    made: pd.DataFrame = names["customers"](rows, seed)
    return made


def write(project: Project, toml: str = TOML) -> None:
    """A notebook that learns, and monitor.toml with its notebook."""
    project.write(
        "train.ipynb", parameters('source: str = ""\nmodel: str = ""\ntable: str = ""'), CUSTOMERS, LEARN, JUDGE
    )
    project.toml(toml.replace("PORT", str(*free_ports(1))))
    # from which the rows follow: a seed, and what the minutes are multiplied by
    (project.folder / "day.txt").write_text("1")
    (project.folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "05_monitor.ipynb", project.folder / "notebooks")
    text = (ROOT / "monitor.toml").read_text().replace("# retrain", "retrain").replace('"churn-', '"tiny-')
    (project.folder / "monitor.toml").write_text(text)


def monitored(folder: Path) -> Project:
    """tiny/1 passed, was approved and serves at production, by the history; monitor.toml and its notebook are there."""
    project = Project(folder)
    write(project)
    for command in (["run"], ["approve", "tiny/1", "--reason", "its numbers are good"]):
        done = project.runner(*command)
        assert done.code == 0, done.err
    since = {"target": "production", "deployment": "first", "since": "2026-11-01T00:00:00.000Z", "number": 1}
    registry_of(project).record("tiny", 1, "deployed", who="ben@desk", why="reviewed", data=since)
    return project


def ask(place: str, rows: pd.DataFrame, model: str, *, refused: int = 0) -> None:
    """Send the rows to a target here, 50 a request, and so many that are refused; wait until all are kept.

    `model` is the version that has to answer.
    """
    records = rows.drop(columns="left").to_dict("records")
    bodies = [(200, records[at : at + 50]) for at in range(0, len(records), 50)] + [(400, [{"plan": "iron"}])] * refused
    with contextlib.closing(Client(int(place.rpartition(":")[2]), patient=True)) as client:
        expected = kept(client) + len(bodies)
        for status, body in bodies:
            answer = client.score(body)
            assert answer.status == status, answer.body
            assert answer.json.get("model", model) == model
        until = time.monotonic() + 30
        while kept(client) < expected and time.monotonic() < until:
            time.sleep(0.05)
        assert kept(client) == expected


def kept(client: Client) -> int:
    """How many requests the target's process has captured."""
    (count,) = re.findall(
        r"^runner_captured_total(?:{.*})? ([\d.]+)", client.ask("GET", "/metrics").body.decode(), re.M
    )
    return int(float(count))


def registry_of(project: Project) -> LocalRegistry:
    return LocalRegistry(project.folder / "runs" / "registry.db")


def capture(project: Project, rows: pd.DataFrame, *, version: str = "tiny/1", refused: int = 0) -> None:
    """Put requests of a row each into the target's folder, in place of what is there."""
    folder = project.folder / "runs" / "captured" / "production"
    shutil.rmtree(folder, ignore_errors=True)
    moment = datetime.now(UTC) - 2 * HOUR
    served = registry_of(project).get("tiny", int(version.removeprefix("tiny/")))
    model = runner.model.load(project.folder / "runs" / served.run / served.artifact.path)
    scores = model.predict(rows, unknown="missing")
    lines = [
        {"seconds": 0.002, "status": 200, "records": [record], "scores": [float(score)]}
        for record, score in zip(rows.drop(columns="left").to_dict("records"), scores, strict=True)
    ]
    lines += [{"seconds": 0.001, "status": 422, "error": f"Row {row}, plan: 'x' is unknown."} for row in range(refused)]
    about = {"time": f"{moment:%Y-%m-%dT%H:%M:%S}.000Z", "version": version}
    file = folder / f"{moment:%Y-%m-%d}" / f"{moment:%H}-1-1.jsonl"
    file.parent.mkdir(parents=True)
    written = [json.dumps({**about, "id": str(at), **line}, default=np.generic.item) for at, line in enumerate(lines)]
    file.write_text("".join(f"{line}\n" for line in written))
