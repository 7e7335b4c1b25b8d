"""Steps on a cluster of processes: started with the step, found by its notebook, ended with it, whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed.system import MEMORY_LIMIT
from support.projects import PAGES, Project, children_of, parameters, recorded

from runner import cluster
from runner.cluster import process
from runner.errors import PipelineError
from runner.pipeline.plan import plan
from runner.records import StepJob, encode

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
    print("part", number, "AKIA" + "IOSFODNN7ABCDEFG")
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
        "client.wait_for_workers(2)\nfacts = client.run(lambda dask_worker: [dask_worker.name, dask_worker.memory_manager.memory_limit])\n"
        "addresses = [client.scheduler.address, *workers]\n"
        "json.dump({'sum': sum(parts), 'facts': list(facts.values()), 'addresses': addresses}, open(out, 'w'))",
        recorded("total", "sum(parts)"),
    )
    done = project.runner("run", "--json", env=PAGES)
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
    assert "IOSFODNN7" not in "".join(logs.values())
    assert ended.runner("verify", "latest").code == 0
    assert not (ended.runs[-1] / "steps/work/scratch").exists()
    page = (ended.runs[-1] / "report.html").read_text()
    assert "2 workers of dask, " in page
    assert "1 started again" in page


def test_another_number_of_workers_is_no_reason_to_run_again(ended: Project) -> None:
    ended.toml(TOML.replace("workers = 2", "workers = 3"))
    again = ended.runner("run", "--json")
    assert again.json["steps"][0]["status"] == "cached", again.err


WAITS = (
    "pathlib.Path('begun').touch()\n"
    "if not pathlib.Path('go on').exists():\n    client.submit(time.sleep, 600).result()\n"
    "pathlib.Path(out).touch()\nclient.shutdown()"
)


def begun(project: Project) -> tuple[subprocess.Popen[str], dict[int, str]]:
    """A run whose cell waits for a worker, and the processes of its cluster with their command lines."""
    running = project.start("run", "--json")
    until = time.monotonic() + 120
    while not (project.folder / "begun").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(running.pid)}
    (node,) = [pid for pid, line in lines.items() if "runner.cluster.node" in line]
    return running, {pid: lines.get(pid, "") for pid in [node, *children_of(node)]}


def gone(pids: dict[int, str]) -> bool:
    return not any(Path(f"/proc/{pid}/stat").exists() and is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(look: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.soak
def test_the_end_of_the_scheduler_fails_the_step_with_a_sentence(project: Project) -> None:
    running, processes = begun(write(project, WAITS))
    progress = json.loads((project.runs[-1] / "progress.json").read_text())
    assert progress[0]["note"].startswith("2 workers, http://127.0.0.1:")
    os.kill(next(iter(processes)), signal.SIGKILL)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 6, err
    error = project.step("work")["result"]["error"]
    assert (error["kind"], error["ename"], error["cell"]) == ("cluster lost", "ClusterLost", 3)
    assert error["evalue"] == "the cluster's scheduler was killed by signal 9, and its workers with it"
    assert json.loads(out)["status"] == "failed"
    assert gone(processes)


@pytest.mark.soak
def test_nothing_is_left_of_a_runner_that_was_killed(project: Project) -> None:
    running, processes = begun(write(project, WAITS))
    assert len(processes) >= 3
    running.kill()
    running.communicate()
    wait_until(lambda: gone(processes))


@pytest.mark.soak
def test_a_step_that_is_stopped_or_late_ends_its_cluster_and_can_be_resumed(project: Project) -> None:
    write(project, WAITS, toml=TOML + "timeout_s = 40\n")
    running, processes = begun(project)
    _, err = running.communicate(timeout=90)
    assert running.returncode == 6, err
    assert project.step("work")["result"]["error"]["ename"] == "StepTimeout"
    assert gone(processes)
    (project.folder / "begun").unlink()
    project.toml(TOML)
    running, processes = begun(project)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=90)
    assert running.returncode == 130, err
    assert project.step("work")["status"] == "interrupted"
    assert gone(processes)
    (project.folder / "go on").touch()
    (project.runs[-1] / "steps" / "work" / "scratch").mkdir()  # of a runner that was killed
    resumed = project.runner("resume", "latest", "--json")
    assert resumed.code == 0, resumed.err
    assert project.runner("verify", "latest").code == 0


def test_a_cluster_that_does_not_start_fails_the_step_before_its_first_cell(project: Project) -> None:
    (project.folder / "distributed.py").write_text("raise ImportError('the wrong distributed')\n")
    write(project, WAITS)
    done = project.runner("run", "--json", env={"PYTHONPATH": str(project.folder)})
    assert done.code == 6, done.err
    result = project.step("work")["result"]
    assert "ImportError: the wrong distributed" in result["error"]["evalue"]
    assert (result["cells_run"], result["executed"]) == (0, None)
    assert project.runner("report", "latest").code == 0


def test_a_cluster_that_is_not_there_in_time_fails_the_step(project: Project) -> None:
    write(project, WAITS, toml=TOML + "timeout_s = 0.2\n")
    done = project.runner("run", "--json")
    assert done.code == 6, done.err
    error = project.step("work")["result"]["error"]
    assert (error["kind"], error["ename"]) == ("timeout", "ClusterTimeout")
    assert error["evalue"] == "the cluster was not ready in time: 0 of its 2 workers were there"
    assert not (project.runs[-1] / "steps/work/scratch").exists()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ('cluster = { engine = "ray", workers = 2 }', "steps.work.cluster.engine: "),
        ('cluster = { engine = "dask" }', "workers"),
        ('cluster = { engine = "dask", workers = 0 }', "steps.work.cluster.workers is 0; it is 1 to 1,000."),
        (
            'cluster = { engine = "dask", workers = 2, memory = 1 }',
            "steps.work.cluster.memory is not a key; did you mean `worker_memory_gb`?",
        ),
        ('cluster = { engine = "dask", workers = 2, worker_memory_gb = 0 }', "worker_memory_gb is 0; it is above 0."),
        ("[steps.work.sagemaker]\ninstance_count = 2", "the step has no `cluster`"),
        (
            'map = { a = ["x"] }\ncluster = { engine = "dask", workers = 2 }\nsagemaker = { instance_count = 2 }',
            "instance_count is 2, and the keys of a mapped step share one machine: write instance_count = 1.",
        ),
        (
            'cluster = { engine = "dask", workers = 2 }\nsagemaker = { instance_count = 3 }',
            "its cluster has 2 workers: each machine needs one.",
        ),
        (
            'cluster = { engine = "dask", workers = 2 }\nsagemaker = { instance_count = 2, job = "training" }',
            'write job = "processing"',
        ),
    ],
)
def test_check_says_what_is_wrong_with_a_cluster(project: Project, keys: str, sentence: str) -> None:
    project.write("nb.ipynb", parameters("a: str = ''"), "a")
    file = project.toml(f'name = "spread"\n[steps.work]\nnotebook = "nb.ipynb"\n{keys}\n')
    with pytest.raises(PipelineError) as raised:
        plan(file)
    assert sentence in str(raised.value)


MAPPED = TOML.replace("outputs", 'map = { key = ["a", "b", "c"] }\noutputs')
OF_A_KEY = (
    "facts = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)\n"
    "pathlib.Path(f'begun-{key}').write_text(json.dumps([client.scheduler.address, *facts.values()]))",
    "if key == 'b' and not pathlib.Path('go on').exists():\n    client.submit(time.sleep, 600).result()\n"
    "while not pathlib.Path('go on').exists():\n    assert client.submit(own.square, 3).result() == 9; time.sleep(0.1)\n"
    "total = sum(client.gather(client.map(own.square, range(20))))\npathlib.Path(out).write_text(f'{key} {total}')",
)


def write_mapped(project: Project, toml: str = MAPPED) -> Project:
    write(project, toml=toml)
    project.write(
        "nb.ipynb", parameters("key: str = ''\nout: str = ''"), BEGIN, "import own", *OF_A_KEY, recorded("n", "total")
    )
    return project


def nodes(running: subprocess.Popen[str]) -> dict[str, int]:
    """The process of each key's cluster."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(running.pid)}
    named = {pid: re.search(r"/keys/([a-z]+)/", line) for pid, line in lines.items() if "runner.cluster.node" in line}
    return {found[1]: pid for pid, found in named.items() if found is not None}


def statuses(project: Project) -> list[str]:
    return [line["status"] for line in project.step("work")["result"]["mapped"]["keys"]]


def end_one(project: Project, workers: int, *env: dict[str, str]) -> None:
    """A run of two keys at once, of which b's scheduler is killed while both work."""
    toml = MAPPED.replace("workers = 2, worker_memory_gb = 0.5", f"workers = {workers}").replace('"b", "c"', '"b"')
    running = write_mapped(project, toml).start("run", "--json", "-j", "2", env=dict(*env))
    wait_until(lambda: all((project.folder / f"begun-{key}").exists() for key in "ab"), 120)
    facts = {key: json.loads((project.folder / f"begun-{key}").read_text()) for key in "ab"}
    assert facts["a"][0] != facts["b"][0]
    assert {limit for fact in facts.values() for limit in fact[1:]} == {int(MEMORY_LIMIT / 2 / workers)}
    (progress,) = json.loads((project.runs[-1] / "progress.json").read_text())
    assert (progress["total"], progress["unit"]) == (2, "keys")
    assert progress["note"].startswith(f"{workers} workers, http://127.0.0.1:")
    os.kill(nodes(running)["b"], signal.SIGKILL)
    wait_until(lambda: (project.runs[-1] / "steps/work/keys/b/state.json").exists())
    (project.folder / "go on").touch()
    out, err = running.communicate(timeout=120)
    assert running.returncode == 6, err
    assert json.loads(out)["status"] == "failed"
    assert statuses(project) == ["succeeded", "failed"]
    assert project.step("work")["result"]["mapped"]["keys"][1]["error"].startswith(
        "ClusterLost: the cluster's scheduler was killed by signal 9"
    )
    assert project.step("work")["result"]["error"]["kind"] == "cluster lost"


@pytest.mark.soak
def test_each_key_has_a_cluster_of_its_own_and_the_end_of_one_touches_no_other(project: Project) -> None:
    end_one(project, 1)


@pytest.mark.soak
def test_the_key_that_lost_its_cluster_is_executed_by_resume_and_each_has_its_logs(project: Project) -> None:
    end_one(project, 2, PAGES)
    page = (project.runs[-1] / "report.html").read_text()
    assert "2 workers of dask for each key, " in page
    resumed = project.runner("resume", "latest", "--json")
    assert resumed.code == 0, resumed.err
    for key in "ab":
        folder = project.runs[-1] / "steps/work"
        assert (folder / f"out/out/{key}/out.json").read_text() == f"{key} 2470"
        logs = {path.name for path in (folder / "keys" / key / "cluster").iterdir()}
        assert {"scheduler.log", "worker-0.log"} <= logs
        assert not (folder / "keys" / key / "scratch").exists()
    facts = project.step("work")["result"]["cluster"]
    assert (facts["engine"], facts["workers"], facts["machines"], facts["restarts"]) == ("dask", 2, 1, 0)
    assert 100e6 < facts["peak_memory_bytes"] < 5e9
    assert project.runner("verify", "latest").code == 0


@pytest.mark.soak
def test_keys_with_clusters_are_stopped_killed_resumed_and_reproduced(project: Project) -> None:
    for end, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        running = write_mapped(project).start("run", "--json", "-j", "2")
        wait_until(lambda: len(nodes(running)) == 2, 120)  # noqa: B023
        wait_until(lambda: len([*project.folder.glob("begun-*")]) == 2, 120)
        processes = dict.fromkeys([*nodes(running).values(), *children_of(running.pid)], "")
        running.send_signal(end)
        _, err = running.communicate(timeout=90)
        assert running.returncode == code, err
        wait_until(lambda: gone(processes))  # noqa: B023
        for mark in project.folder.glob("begun-*"):
            mark.unlink()
    (project.folder / "go on").touch()
    resumed = project.runner("resume", "latest", "--json")
    assert resumed.code == 0, resumed.err
    assert statuses(project) == ["succeeded"] * 3
    assert project.runner("verify", "latest").code == 0
    again = project.runner("reproduce", "latest")
    assert again.code == 0, again.err
    project.toml(MAPPED.replace('"c"]', '"c", "d"]'))
    assert "1 of 4 keys: key" in project.runner("run", "--dry-run").out
    assert project.runner("run", "-j", "2").code == 0
    assert statuses(project) == [*["cached"] * 3, "succeeded"]
    assert project.runner("verify", "latest").code == 0


@pytest.mark.soak
def test_a_key_whose_cluster_does_not_start_has_a_sentence_and_no_notebook(project: Project) -> None:
    (project.folder / "distributed.py").write_text("raise ImportError('the wrong distributed')\n")
    done = write_mapped(project).runner("run", env={"PYTHONPATH": str(project.folder), **PAGES})
    assert done.code == 6, done.err
    assert "3 of 3 keys failed: a: ClusterLost: " in done.out + done.err
    page = (project.runs[-1] / "report.html").read_text()
    assert "the wrong distributed" in page
    assert "keys/a/executed.ipynb" not in page
    assert "pages/a.html" not in page
    assert project.runner("verify", "latest").code == 0


def test_a_job_says_what_runs_beside_it_only_where_clusters_share_a_machine() -> None:
    assert "beside" not in json.loads(encode(StepJob(run="r", step="s", notebook="n.ipynb")))
    assert json.loads(encode(StepJob(run="r", step="s", notebook="n.ipynb", beside=4)))["beside"] == 4


def test_a_missing_package_is_named_with_what_installs_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(project, WAITS).folder / "pipeline.toml"
    cluster.require(plan(file).pipeline)
    monkeypatch.setitem(cluster.PACKAGES, "dask", ("dask", "no_such_package"))
    with pytest.raises(PipelineError, match=r"steps.work.cluster: the package no_such_package is not installed here"):
        cluster.require(plan(file).pipeline)


def test_workers_are_spread_over_the_machines_as_evenly_as_they_go() -> None:
    hosts = ["a", "b", "c"]
    for workers in range(3, 12):
        spread = [list(cluster.workers_of(hosts, own, workers)) for own in hosts]
        assert [number for numbers in spread for number in numbers] == list(range(workers))
        assert max(map(len, spread)) - min(map(len, spread)) <= 1


def test_a_log_keeps_the_last_of_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 1000)
    with process.logs(tmp_path / "cluster", ["a secret parameter"]) as write_line:
        for number in range(500):
            write_line("worker-0", f"line {number} a secret parameter")
    files = sorted((tmp_path / "cluster").iterdir())
    assert [f"cluster/{file.name}" for file in files] == cluster.log_files(1)[2:]
    assert sum(file.stat().st_size for file in files) <= 2000
    assert "line 499 [redacted]" in files[0].read_text()
