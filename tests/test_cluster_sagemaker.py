"""A step on two machines of the small SageMaker: the same model as on one, and what becomes of lost machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud import SAGEMAKER, RemoteProject, running
from small_sagemaker import SmallSageMaker
from small_sagemaker.trying import read_log
from support.commands import environment
from support.flow import Story
from support.notebook_rules import check_code, check_commit, check_parameters, check_size
from support.projects import ROOT, Project, parameters, recorded

LARGE = ROOT / "examples" / "large"
TOML = """
name = "spread"
[steps.work]
notebook = "nb.ipynb"
inputs = { table = "./table/" }
outputs = { out = "out.json" }
cluster = { engine = "dask", workers = 3 }
sagemaker = { instance_count = 2, encrypt_traffic = true }
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


@pytest.fixture
def far(cloud: SmallSageMaker, tmp_path: Path) -> RemoteProject:
    return RemoteProject(tmp_path, cloud)


def example(project: Project) -> None:
    """The example with its table in parts."""
    for file in (LARGE / "train.ipynb", LARGE / "make_parts.py"):
        shutil.copyfile(file, project.folder / file.name)
    make = (
        f"import sys; sys.path.insert(0, {str(LARGE)!r}); import make_parts; make_parts.write(make_parts.Path('table'))"
    )
    subprocess.run([sys.executable, "-c", make], cwd=project.folder, check=True)
    project.toml((LARGE / "pipeline.toml").read_text())


def wait_for_line(project: Project, run: subprocess.Popen[str], words: str, seconds: float = 300) -> None:
    """Until the log of the job has a line with these words."""
    until = time.monotonic() + seconds
    while not any(words in log.read_text() for log in project.folder.glob("runs/2*/steps/*/job.log")):
        if run.poll() is not None or time.monotonic() > until:
            run.kill()
            pytest.fail(str(run.communicate()))
        time.sleep(0.1)


def processes(host: str, word: str) -> list[int]:
    """The processes of this command in a container of this machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "root").readlink()).endswith(f"/{host}/root") and word in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


@pytest.mark.soak
def test_a_step_works_on_two_machines_and_what_they_print_comes_back(far: RemoteProject) -> None:
    (far.folder / "table").mkdir()
    (far.folder / "table" / "a.txt").write_text("12")
    (far.folder / "own.py").write_text("def square(number):\n    return number * number\n")
    far.write(
        "nb.ipynb",
        parameters("table: str = ''\nout: str = ''"),
        "import distributed, json, own, pathlib, socket\nclient = distributed.Client()",
        "def read(number):\n    print('part', number)\n"
        "    return own.square(number) + int((pathlib.Path(table) / 'a.txt').read_text())\n"
        "total = sum(client.gather(client.map(read, range(20))))",
        "names = client.run(lambda dask_worker: [dask_worker.name, dask_worker.contact_address or dask_worker.address])\n"
        "json.dump([total, sorted(names.values())], open(out, 'w'))",
    )
    far.toml(TOML)
    done = far.runner("run", "--json", "--on", "sagemaker")
    assert done.code == 0, done.err
    total, workers = json.loads((far.runs[-1] / "steps/work/out/out.json").read_text())
    assert total == sum(number * number + 12 for number in range(20))
    assert [(name, address.rpartition(":")[0]) for name, address in workers] == [
        ("worker-0", "tcp://10.11.0.1"),
        ("worker-1", "tcp://10.11.0.2"),
        ("worker-2", "tcp://10.11.0.2"),
    ]
    result = far.step("work")["result"]
    assert result["cluster"]["machines"] == 2
    remote = result["remote"]
    assert remote["machines"] == 2
    assert remote["price_usd"] == pytest.approx(2 * remote["billed_s"] * 0.23 / 3600, abs=1e-5)
    lines = (far.runs[-1] / "steps/work/job.log").read_text().splitlines()
    assert any(line.startswith("worker-0 | part ") for line in lines)
    assert any(line.startswith("algo-2 | worker-2 | part ") for line in lines)
    assert far.runner("verify", "latest").code == 0
    (job,) = far.cloud.jobs()
    assert job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 2
    assert job["NetworkConfig"]["EnableInterContainerTrafficEncryption"] is True
    dry = far.runner("run", "--on", "sagemaker", "--dry-run", "--force", "--json").json
    assert dry["ways"][0]["jobs"] == {"2 × ml.m5.xlarge": 1}
    assert dry["ceiling_usd"] == pytest.approx(2 * 3 * 0.23 * (24 + 900 / 3600), abs=0.01)


@pytest.mark.soak
def test_two_machines_make_the_model_of_one_and_a_killed_worker_costs_time_alone(
    far: RemoteProject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = Project(tmp_path_factory.mktemp("here"))
    example(here)
    one = here.runner("run", "--json")
    assert one.code == 0, one.err
    example(far)
    two = far.start("run", "--json", "--on", "sagemaker")

    wait_for_line(far, two, "got rank")  # XGBoost has begun
    os.kill(processes("algo-2", "spawn_main")[-1], signal.SIGKILL)
    out, err = two.communicate(timeout=600)
    assert two.returncode == 0, err
    metrics = [one.json["metrics"], json.loads(out)["metrics"]]
    aucs = [metric["train.auc"]["value"] for metric in metrics]
    assert aucs[0] == pytest.approx(aucs[1], abs=0.002)
    assert aucs[0] > 0.9
    assert [metric["train.workers"]["value"] for metric in metrics] == [4, 4]
    facts = far.step("train")["result"]["cluster"]
    assert (facts["machines"], facts["restarts"]) == (2, 1)


@pytest.mark.soak
def test_a_machine_that_is_lost_fails_the_job_with_its_name(far: RemoteProject) -> None:
    (far.folder / "table").mkdir()
    (far.folder / "table" / "a.txt").write_text("12")
    waits = "import time\nclient.submit(print, 'begun').result()\nclient.submit(time.sleep, 600).result()"
    begin = "import distributed\nclient = distributed.Client()"
    far.write("nb.ipynb", parameters("table: str = ''\nout: str = ''"), begin, waits)
    far.toml(TOML)
    run = far.start("run", "--json", "--on", "sagemaker")

    wait_for_line(far, run, "| begun")
    worker = processes("algo-2", "spawn_main")[0]
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 7, err
    error = far.step("work")["result"]["error"]
    assert error["kind"] == "remote"
    assert "algo-2: the process of this machine's workers was killed by signal 9" in error["evalue"]


IN_A_PIPELINE = """
name = "spread"
[parameters]
fails = "no"
[steps.work]
notebook = "work.ipynb"
inputs = { table = "./table/" }
outputs = { out = "out.json" }
retries = 1
cluster = { engine = "dask", workers = 3 }
sagemaker = { instance_count = 2, encrypt_traffic = true }
[steps.sum]
notebook = "sum.ipynb"
inputs = { parts = "work.out", table = "./table/" }
cluster = { engine = "dask", workers = 2 }
sagemaker = { instance_count = 2 }
[[gate]]
metric = "sum.total"
min = 1
[steps.last]
notebook = "last.ipynb"
inputs = { verdict = "gate.verdict" }
outputs = { said = "said.json" }
cluster = { engine = "dask", workers = 2 }
sagemaker = { instance_count = 2 }
"""
CLIENT = "import distributed, json, os, pathlib\nclient = distributed.Client()"
HOSTS = "sorted(address.rpartition(':')[0] for address in client.scheduler_info()['workers'])"


def in_a_pipeline(far: RemoteProject) -> Story:
    """Three steps on two machines each: the first job makes the pins, the second judges, the third waits for it."""
    (far.folder / "table").mkdir()
    (far.folder / "table" / "a.txt").write_text("12")
    (far.folder / "own.py").write_text("def square(number):\n    return number * number\n")
    far.write(
        "work.ipynb",
        parameters("table: str = ''\nout: str = ''\nfails: str = ''"),
        CLIENT + "\nimport own",
        "def read(number):\n    print('part', number)\n"
        "    return own.square(number) + int((pathlib.Path(table) / 'a.txt').read_text())\n"
        "if fails == 'once' and not os.path.exists('/tmp/tried'):\n    pathlib.Path('/tmp/tried').touch()\n"
        "    client.run_on_scheduler(lambda: os.kill(os.getpid(), 9))",
        f"json.dump([client.gather(client.map(read, range(9))), {HOSTS}], open(out, 'w'))",
    )
    far.write(
        "sum.ipynb",
        parameters("parts: str = ''\ntable: str = ''"),
        CLIENT,
        "def read(_):\n    return sum(json.load(open(parts))[0]) + int(open(table + '/a.txt').read())\n"
        f"totals, hosts = list(client.run(lambda dask_worker: read(0)).values()), {HOSTS}\nprint(totals, hosts)",
        recorded("total", "float(sum(totals))"),
    )
    far.write(
        "last.ipynb",
        parameters("verdict: str = ''\nsaid: str = ''"),
        CLIENT,
        "def read():\n    return json.load(open(verdict))['outcome']\n"
        "json.dump(sorted(client.run(read).values()), open(said, 'w'))",
    )
    far.toml(IN_A_PIPELINE)
    return Story(far, far.cloud)


def results(manifest: dict[str, Any]) -> dict[str, Any]:
    """Of each step what a run and an execution must have alike."""
    alike = {}
    for step in manifest["steps"]:
        result = step["result"]
        cluster = {name: result["cluster"][name] for name in ("engine", "workers", "machines", "versions", "restarts")}
        hashes = {name: output["sha256"] for name, output in result["outputs"].items()}
        remote = {name: result["remote"][name] for name in ("machines", "instance", "environment", "packages")}
        alike[step["name"]] = step["status"], result["error"], hashes, result["metrics"], cluster, remote
    return alike


def cells(project: Project, run: str, step: str) -> list[Any]:
    """The executed cells but for what differs between any two executions."""
    document = json.loads((project.folder / "runs" / run / "steps" / step / "executed.ipynb").read_text())
    return [
        (cell["source"], [output.get("text") for output in cell["outputs"]])
        for cell in document["cells"]
        if "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


@pytest.mark.soak
def test_an_execution_of_a_pipeline_has_the_machines_and_the_results_of_a_run(far: RemoteProject) -> None:
    told = in_a_pipeline(far)
    run = far.runner("run", "--json", "--on", "sagemaker")
    assert run.code == 0, run.err
    before = {job["ProcessingJobName"] for job in far.cloud.jobs()}
    pushed = far.here("pipeline", "push", "--json")
    assert pushed.code == 0, pushed.err
    told.start("first")
    told.follow("first")
    assert told.steps("first") == dict.fromkeys(["work", "sum", "gate-passed", "last"], "ran"), told.seen["first"]
    imported = told.manifest("first")
    mine = json.loads((far.folder / "runs" / run.json["run"] / "run.json").read_text())
    assert results(imported) == results(mine)
    for step in ("work", "sum", "last"):
        assert cells(far, told.runs["first"], step) == cells(far, run.json["run"], step)
    written = json.loads((far.folder / "runs" / told.runs["first"] / "steps/work/out/out.json").read_text())
    assert written[1] == ["tcp://10.11.0.1", "tcp://10.11.0.2", "tcp://10.11.0.2"]
    said = json.loads((far.folder / "runs" / told.runs["first"] / "steps/last/out/said.json").read_text())
    assert said == ["pass", "pass"]
    for state in imported["steps"]:
        remote = state["result"]["remote"]
        assert remote["price_usd"] == pytest.approx(2 * remote["billed_s"] * 0.23 / 3600, abs=1e-5)
    assert far.here("verify", told.runs["first"]).code == 0
    jobs = [job for job in far.cloud.jobs() if job["ProcessingJobName"] not in before]
    assert [job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] for job in jobs] == [2, 2, 2]
    encrypted = [job.get("NetworkConfig", {}).get("EnableInterContainerTrafficEncryption") for job in jobs]
    assert sorted(encrypted, key=str) == [None, None, True]
    # more workers are no reason to run again; machines that have nothing to do end
    far.toml(IN_A_PIPELINE.replace("workers = 3", "workers = 4"))
    assert far.here("pipeline", "push", "--json").json["outcome"] == "updated"
    told.start("again")
    told.follow("again")
    assert {step: state for step, state in told.steps("again").items() if step != "gate-passed"} == dict.fromkeys(
        ["work", "sum", "last"], "cached"
    )
    # a lost scheduler is tried again in the same job, with the workers of both machines
    told.start("retried", "-p", "fails=once")
    told.follow("retried")
    assert told.steps("retried")["work"] == "ran", told.seen["retried"]
    result = told.state("retried", "work")["result"]
    assert (result["cluster"]["workers"], result["cluster"]["machines"]) == (4, 2)
    orders = [call.parameters["Key"] for call in far.cloud.calls if "/machines/" in str(call.parameters.get("Key"))]
    assert max(int(Path(key).stem) for key in orders) == 3


@pytest.mark.soak
def test_a_lost_machine_fails_the_execution_with_its_name_and_one_that_is_stopped_ends_on_all(
    far: RemoteProject,
) -> None:
    told = in_a_pipeline(far)
    far.write(
        "work.ipynb",
        parameters("table: str = ''\nout: str = ''"),
        CLIENT,
        "import time\nclient.run(pathlib.Path('/tmp/begun').touch)\nclient.submit(time.sleep, 600).result()",
    )
    far.toml(IN_A_PIPELINE.replace('[parameters]\nfails = "no"\n', ""))
    assert far.here("pipeline", "push").code == 0
    told.start("lost")
    worker = wait_for_begun()
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    told.follow("lost")
    assert told.seen["lost"]["status"] == "Failed"
    (step,) = told.seen["lost"]["steps"]
    assert "algo-2: the process of this machine's workers was killed by signal 9" in step["reason"]
    assert told.state("lost", "work")["result"]["error"]["kind"] == "remote"
    assert not processes("algo-1", "")
    told.start("stopped")
    wait_for_begun()
    far.cloud.client("sagemaker").stop_pipeline_execution(
        PipelineExecutionArn=told.started["stopped"], ClientRequestToken="0" * 32
    )
    told.follow("stopped")
    assert told.seen["stopped"]["status"] == "Stopped"
    assert told.state("stopped", "work")["status"] == "interrupted"
    assert not processes("algo-1", "") + processes("algo-2", "")


def wait_for_begun() -> int:
    """Until the workers of the second machine have begun; one of them."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for worker in processes("algo-2", "spawn_main"):
            if Path(f"/proc/{worker}/root/tmp/begun").exists():
                return worker
        time.sleep(0.1)
    pytest.fail("they have not begun")


@pytest.mark.soak
def test_machines_have_packages_only_where_the_step_is_executed(cloud: SmallSageMaker, tmp_path: Path) -> None:
    pins = re.findall(r"^(?:msgspec|uv)==(?:.*\\\n)+.*\n", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (tmp_path / "two.lock").write_text("".join(pins))
    settings = SAGEMAKER.replace('packages = "image"', 'packages = "lock"\nlock = "two.lock"')
    told = in_a_pipeline(RemoteProject(tmp_path, cloud, settings))
    told.project.toml(IN_A_PIPELINE.partition("[steps.sum]")[0])
    assert told.project.here("pipeline", "push").code == 0
    plain = "runner: no notebook is executed yet, nothing installed"
    for name, expected in (("first", [plain, "runner: image equals the lock, nothing installed"]), ("again", [plain])):
        told.start(name)
        told.follow(name)
        (step,) = told.seen[name]["steps"]
        assert step["status"] == "Succeeded", told.seen[name]
        for host in ("algo-1", "algo-2"):
            lines = [
                line for line in read_log(cloud.client("logs"), step["job"], host) if line.endswith("nothing installed")
            ]
            assert lines == expected, (name, host, lines)


@pytest.mark.soak
def test_clusters_on_one_machine_share_a_job_of_the_pipeline(cloud: SmallSageMaker, tmp_path: Path) -> None:
    told = in_a_pipeline(RemoteProject(tmp_path, cloud, SAGEMAKER + "together = true\n"))
    (told.project.folder / "table" / "a.txt").write_text("13")  # else the results of other tests would do
    told.project.toml(re.sub(r"sagemaker = .*\n", "", IN_A_PIPELINE.replace('"spread"', '"together"')))
    assert told.project.here("pipeline", "push").code == 0
    told.start("shared")
    told.follow("shared")
    assert told.seen["shared"]["status"] == "Succeeded", told.seen["shared"]
    assert [step["name"] for step in told.seen["shared"]["steps"] if step["job"]] == ["work"]
    clusters = [told.state("shared", step)["result"]["cluster"] for step in ("work", "sum", "last")]
    assert [(facts["workers"], facts["machines"]) for facts in clusters] == [(3, 1), (2, 1), (2, 1)]
    assert told.project.here("verify", told.runs["shared"]).code == 0


@pytest.mark.soak
def test_by_hand_the_same_notebook_starts_a_cluster_of_its_own(project: Project) -> None:
    example(project)
    line = [sys.executable, "-m", "papermill", "train.ipynb", "done.ipynb", "-k", "python3"]
    done = subprocess.run(line, cwd=project.folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (project.folder / "work/train/model/signature.json").exists()


def test_the_examples_notebook_keeps_to_the_style_of_those_that_ship() -> None:
    for check in (check_size, check_commit, check_parameters, check_code):
        check(LARGE / "train.ipynb")


@pytest.mark.soak
def test_each_key_of_a_mapped_step_has_a_cluster_on_its_jobs_machine(far: RemoteProject) -> None:
    far.write(
        "work.ipynb",
        parameters('region: str = ""\nout: str = ""'),
        "import distributed\nclient = distributed.Client()\nwords = client.submit(str.upper, region).result()",
        "open(out, 'w').write(words)",
    )
    far.toml(
        'name = "keyed"\n[steps.work]\nnotebook = "work.ipynb"\nmap = { region = ["north", "south"] }\n'
        'outputs = { out = "o.txt" }\ncluster = { engine = "dask", workers = 1 }\n'
    )
    done = far.here("run", "--on", "sagemaker")
    assert done.code == 0, done.stderr
    state = far.step("work")
    assert [key["status"] for key in state["result"]["mapped"]["keys"]] == ["succeeded", "succeeded"]
    assert state["result"]["cluster"]["workers"] == 1
    folder = far.runs[-1] / "steps/work/out/out"
    assert {path.read_text() for path in folder.rglob("o.txt")} == {"NORTH", "SOUTH"}
    assert far.here("verify", far.runs[-1].name).code == 0
