"""The pipeline `flow` as a SageMaker Pipeline, and the story of its executions."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from cloud import SAGEMAKER, RemoteProject
from small_sagemaker import CLIENT_KEY, SmallSageMaker

from support.commands import Done
from support.projects import Project, parameters, recorded

TOML = """
name = "flow"
[parameters]
level = "007"
[steps.data]
notebook = "nb/data.ipynb"
inputs = { source = "./in.txt" }
outputs = { table = "table.txt" }
parameters = { factor = 2 }
[steps.train]
notebook = "nb/train.ipynb"
inputs = { table = "data.table" }
outputs = { model = "model/" }
[steps.evaluate]
notebook = "nb/evaluate.ipynb"
inputs = { model = "train.model", champion = "approved:flow" }
parameters = { score = 0.75, sound = true }
[[gate]]
metric = "evaluate.score"
min = 0.5
[[gate]]
metric = "evaluate.score"
min = 0.6
when = "evaluate.champion"
[model]
name = "flow"
from = "train.model"
registry = "sagemaker"
[steps.register]
notebook = "nb/register.ipynb"
inputs = { model = "train.model", verdict = "gate.verdict" }
"""
# a prefix with a word in it that the jobs' own folders have too
SETTINGS = SAGEMAKER.replace('"team"', '"team/out"') + 'tags = { team = "blue" }\n'
ENDED = ("Succeeded", "Failed", "Stopped")


def write(project: Project) -> None:
    """Four tiny notebooks: a table, a model of it, a score, a registration."""
    project.write(
        "nb/data.ipynb",
        parameters("source: str = ''\ntable: str = ''\nfactor: int = 1\nlevel: str = '1'"),
        "open(table, 'w').write(open(source).read() * factor + level)",
        recorded("rows", "float(factor)"),
    )
    project.write(
        "nb/train.ipynb",
        parameters("table: str = ''\nmodel: str = ''"),
        "import json, pathlib\npathlib.Path(model, 'model.json').write_text(json.dumps({'table': open(table).read()}))",
        "pathlib.Path(model, 'signature.json').write_text('{}')",
    )
    project.write(
        "nb/evaluate.ipynb",
        parameters("model: str = ''\nchampion: str = ''\nscore: float = 0.1\nsound: bool = True"),
        "import pathlib\nprint('champion', champion and pathlib.Path(champion, 'model.json').read_text())",
        "assert sound, 'no sound table'",
        recorded("score", "score"),
    )
    project.write(
        "nb/register.ipynb",
        parameters("model: str = ''\nverdict: str = ''"),
        "import json\nassert json.load(open(verdict))['outcome'] == 'pass'",
        "from runner.model import register\nregister(model, card='# Tiny', description='a tiny one')",
    )
    (project.folder / "in.txt").write_text("hello\n")
    project.toml(TOML)


@dataclass
class Story:
    """What was done, in order; executions as `pipeline status --json` has them once they have ended."""

    project: RemoteProject
    cloud: SmallSageMaker
    pushed: list[str] = field(default_factory=list)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    said: dict[str, Done] = field(default_factory=dict)
    started: dict[str, str] = field(default_factory=dict)
    throttled: int = 0

    def start(self, name: str, *arguments: str) -> None:
        done = self.project.here("pipeline", "start", "--json", *arguments)
        assert done.code == 0, done.err
        self.started[name] = done.json["arn"]

    def start_elsewhere(self, name: str, **values: str) -> None:
        """As Studio or EventBridge do."""
        given = [{"Name": key.replace("_", "-"), "Value": value} for key, value in values.items()]
        schedule = self.cloud.client("sagemaker", access_key=f"{CLIENT_KEY}.flow-start")
        found = schedule.start_pipeline_execution(PipelineName="flow", PipelineParameters=given)
        self.started[name] = found["PipelineExecutionArn"]

    def follow(self, *names: str) -> None:
        client = self.cloud.client("sagemaker")
        for name in names:
            arn = self.started[name]
            while client.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] not in ENDED:
                time.sleep(0.3)
            done = self.project.here("pipeline", "status", arn, "--json")
            assert done.code == 0, done.err
            self.seen[name] = done.json

    def take_in(self, name: str) -> dict[str, Any]:
        done = self.project.here("import", self.started[name], "--json", "--no-report")
        assert done.code == 0, done.err
        self.runs[name] = done.json["run"]
        return self.manifest(name)

    def manifest(self, name: str) -> dict[str, Any]:
        if name not in self.runs:
            return self.take_in(name)
        found: dict[str, Any] = json.loads((self.project.folder / "runs" / self.runs[name] / "run.json").read_text())
        return found

    def steps(self, name: str) -> dict[str, str]:
        """What became of each step: "ran", "cached", or the service's word."""
        return {
            step["name"]: "cached"
            if step["cached_from"]
            else "ran"
            if step["status"] == "Succeeded"
            else step["status"]
            for step in self.seen[name]["steps"]
        }

    def state(self, name: str, step: str) -> dict[str, Any]:
        return next(state for state in self.manifest(name)["steps"] if state["name"] == step)
