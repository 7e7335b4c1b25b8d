"""Steps on a cluster of processes: started with the step, found by its notebook, ended with it, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.projects import Project, children_of, parameters, recorded

from runner import cluster
from runner.cluster import process
from runner.errors import PipelineError
from runner.pipeline.plan import plan
from runner.records import ClusterSpec

TOML = """
name = "spread"
[steps.work]
notebook = "nb.ipynb"
outputs = { out = "out.json" }
cluster = { engine = "dask", workers = 2, worker_memory_gb = 0.5 }
"""
BEGIN = "import distributed, json, os, pathlib, time\nclient = distributed.Client()\nworkers = client.scheduler_info()['workers']"
KILLED = """
marks = pathlib.Path("mark")
def part(number):
    print("part", number, "password=hunter2hunter2")
    if number == 3 and not marks.exists():
        marks.touch()
        os.kill(os.getpid(), 9)
    return own.square(number)
"""


def write(project: Project, *cells: str, toml: str = TOML) -> Project:
    (project.folder / "own.py").write_text("def square(number):\n    return number * number\n")
    project.write("nb.ipynb", parameters("out: str = ''"), BEGIN, *cells)
    project.toml(toml)
    return project


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run whose second worker was killed by a task, and that wrote what its workers were."""
    project = write(
        Project(tmp_path_factory.mktemp("spread")),
        "import own\n" + KILLED,
        "parts = client.gather(client.map(part, range(40)))",
        "facts = client.run(lambda dask_worker: [dask_worker.name, dask_worker.memory_manager.memory_limit])\n"
        "addresses = [client.scheduler.address, *workers]\n"
        "json.dump({'sum': sum(parts), 'facts': list(facts.values()), 'addresses': addresses}, open(out, 'w'))",
        recorded("total", "sum(parts)"),
    )
    done = project.runner("run", "--json", "-m", "spread")
    assert done.code == 0, done.err
    return project


def test_a_killed_worker_costs_time_and_not_the_run(ended: Project) -> None:
    written = json.loads((ended.runs[-1] / "steps/work/out/out.json").read_text())
    assert written["sum"] == sum(number * number for number in range(40))
    assert sorted(written["facts"]) == [["worker-0", 500_000_000], ["worker-1", 500_000_000]]
    assert all(address.startswith("tcp://127.0.0.1:") for address in written["addresses"])
    result = ended.step("work")["result"]
    assert result["cluster"]["restarts"] == 1
    assert result["cluster"]["workers"] == 2
    assert set(result["cluster"]["versions"]) == {"dask", "distributed"}
    assert 100e6 < result["cluster"]["peak_memory_bytes"] < 5e9
    assert result["kernel"] == "standard"


def test_every_process_has_a_log_without_credentials_and_the_run_is_sound(ended: Project) -> None:
    logs = {path.name: path.read_text() for path in (ended.runs[-1] / "steps/work/cluster").iterdir()}
    assert set(logs) == {"scheduler.log", "worker-0.log", "worker-1.log"}
    assert "Restarting worker" in logs["scheduler.log"]
    assert "part 7" in logs["worker-0.log"] + logs["worker-1.log"]
    assert "hunter2" not in "".join(logs.values())
    assert ended.runner("verify", "latest").code == 0
    assert not list((ended.runs[-1] / "steps/work").glob("scratch*"))


def test_another_number_of_workers_is_no_reason_to_run_again(ended: Project) -> None:
    ended.toml(TOML.replace("workers = 2", "workers = 3"))
    again = ended.runner("run", "--json")
    assert again.json["steps"][0]["status"] == "cached", again.err
