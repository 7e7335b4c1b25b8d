"""With [store] runs = "s3://…" several people and CI see one set of runs, each from a folder of their own."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from account import identities
from cloud import BUCKET, SAGEMAKER, in_sagemaker, jobs, running
from small_sagemaker import SmallSageMaker
from support.commands import Done
from support.projects import ROOT, Project, code, parameters, recorded

TOML = f"""
name = "shared"
[store]
runs = "s3://{BUCKET}/ours/shared"
[steps.make]
notebook = "make.ipynb"
outputs = {{ out = "x.txt" }}
[steps.judge]
notebook = "judge.ipynb"
inputs = {{ table = "make.out" }}
[[gate]]
metric = "judge.score"
min = 0.5
"""


@pytest.fixture
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        made.attach(identities(Project="shared", Bucket=BUCKET, Prefix="ours", Model="shared"))
        yield made


class Machine(Project):
    """One person's checkout."""

    def runner(self, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        return super().runner(*arguments, env={**CLOUD, **(env or {})}, cwd=cwd)


CLOUD: dict[str, str] = {}


@pytest.fixture
def machines(cloud: SmallSageMaker, tmp_path: Path) -> tuple[Machine, Machine]:
    CLOUD.clear()
    CLOUD.update(cloud.environment)
    made = []
    for name in ("ana", "ben"):
        (tmp_path / name).mkdir()
        machine = Machine(tmp_path / name)
        machine.write("make.ipynb", parameters("out: str = ''\nn: int = 1"), "open(out, 'w').write('x' * n)")
        machine.write(
            "judge.ipynb", parameters("table: str = ''"), code("print(open(table).read())"), recorded("score", "0.9")
        )
        machine.toml(TOML)
        made.append(machine)
    return made[0], made[1]


@pytest.mark.soak
def test_one_runs_and_the_other_sees_takes_and_verifies_it(machines: tuple[Machine, Machine]) -> None:
    ana, ben = machines
    assert ana.runner("run").code == 0
    run = ana.runs[-1].name
    listed = ben.runner("runs", "--json")
    assert [entry["run"] for entry in listed.json] == [run]
    assert ben.runner("show", "latest").code == 0
    assert ben.runner("verify", run).code == 0
    assert ben.runner("report", run).code == 0
    assert (ben.folder / "runs" / run / "report.html").exists()
    taken = ben.runner("run", "--json")
    assert [step["status"] for step in taken.json["steps"]] == ["cached", "cached"]
    assert ben.runner("verify", "latest").code == 0
    changed = ben.runner("run", "--json", "-p", "make.n=3")
    assert [step["status"] for step in changed.json["steps"]] == ["succeeded", "succeeded"]
    assert len(ana.runner("runs", "--json").json) == 3
    differ = ana.runner("diff", run, "latest")
    assert differ.code == 0
    assert "n" in differ.out


@pytest.mark.soak
def test_a_run_of_another_machine_is_not_resumed_unless_taken_over(
    machines: tuple[Machine, Machine], cloud: SmallSageMaker
) -> None:
    ana, ben = machines
    assert ana.runner("run", env={"RUNNER_FAILPOINT": "step about to run:judge"}).code == -signal.SIGKILL
    run = ana.runs[-1].name
    for refused in (ben.runner("resume", run), ben.runner("stop", run)):  # both are on one host
        assert refused.code == 8
        assert f"on {socket.gethostname()}, in another checkout" in refused.err
        assert "--take-over" in refused.err
    taken = ben.runner("resume", run, "--take-over", "--json")
    assert taken.code == 0, taken.err
    assert taken.json["status"] == "succeeded"
    assert ben.runner("verify", run).code == 0
    assert "Contents" not in cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="ours/shared/owners/")


@pytest.mark.soak
def test_a_job_of_a_machine_that_died_is_gone_on_with_by_another(
    machines: tuple[Machine, Machine], cloud: SmallSageMaker
) -> None:
    ana, ben = machines
    for machine in machines:
        machine.toml(in_sagemaker(TOML, SAGEMAKER.replace('"team"', '"ours"')))
        shutil.copyfile(ROOT / "requirements.lock", machine.folder / "requirements.lock")
    died = ana.runner("run", "--on", "sagemaker", env={"RUNNER_FAILPOINT": "job created:make"})
    assert died.code == -signal.SIGKILL
    (seen,) = ben.runner("runs", "--json").json
    assert seen["status"] == "running"
    run = seen["run"]
    asked = (ana.runs[-1] / "steps/make/request.json").read_bytes()
    taken = ben.runner("resume", run, "--take-over", "--json")
    assert taken.code == 0, taken.err
    assert (ben.runs[-1] / "steps/make/request.json").read_bytes() == asked
    assert len(jobs(cloud)) == 2
    assert ben.runner("verify", run).code == 0
    assert [entry["status"] for entry in ana.runner("runs", "--json").json] == ["succeeded"]


@pytest.mark.soak
def test_a_run_that_could_not_be_shared_is_whole_and_shared_later(
    machines: tuple[Machine, Machine], cloud: SmallSageMaker
) -> None:
    ana, ben = machines
    cloud.faults.add("PutObject", "AccessDenied", times=None, match="manifests")
    done = ana.runner("run")
    assert done.code == 7
    assert "is whole here" in done.err
    assert "runner resume" in done.err
    assert ben.runner("runs", "--json").json == []
    cloud.faults.clear()
    assert ana.runner("resume", "latest").code == 0
    assert len(ben.runner("runs", "--json").json) == 1


@pytest.mark.soak
def test_what_lies_in_the_shared_place_leads_nobody_out_of_their_folder(
    machines: tuple[Machine, Machine], cloud: SmallSageMaker, tmp_path: Path
) -> None:
    """Its manifests and records are those of whoever may write there: what a run has not, is not taken, and told."""
    ana, ben = machines
    (tmp_path / "victim").write_text("mine")
    assert ana.runner("run").code == 0
    run, s3 = ana.runs[-1].name, cloud.client("s3")
    manifest = json.loads((ana.runs[-1] / "run.json").read_text())
    for number, place in enumerate((str(tmp_path / "victim"), "../../../../victim", "executed.ipynb/../../x"), 1):
        manifest["run"] = f"20200101-000000-000{number}"
        manifest["steps"][0]["result"]["executed"]["path"] = place
        s3.put_object(
            Bucket=BUCKET, Key=f"ours/shared/manifests/{manifest['run']}.json", Body=json.dumps(manifest).encode()
        )
    key = f"ours/shared/records/{run}.tar.gz"
    records = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    more = (
        "lock",
        "../../victim",
        str(tmp_path / "victim"),
        "report.html",
        "steps/make/modules/statistics.py",
        "owned-elsewhere",
    )
    s3.put_object(Bucket=BUCKET, Key=key, Body=added(records, *more))
    listed = ben.runner("runs", "--json")
    assert [entry["run"] for entry in listed.json] == [run]
    assert listed.err.count("cannot be taken in") == 3
    assert ben.runner("show", run).code == 0
    assert ben.runner("verify", run).code == 0
    there = {path.relative_to(ben.runs[-1]).as_posix() for path in ben.runs[-1].rglob("*") if path.is_file()}
    assert not there & {*more} - {"lock"}
    assert (tmp_path / "victim").read_text() == "mine"
    shutil.rmtree(ben.folder / "runs")
    s3.put_object(Bucket=BUCKET, Key=key, Body=added(records, "steps/make/notebook.ipynb", first=True))
    done = ben.runner("show", run)
    assert (done.code, "is not what the manifest says" in done.err) == (8, True), done.err
    assert not (ben.runs[-1] / "steps").exists()
    s3.put_object(Bucket=BUCKET, Key=key, Body=records)
    assert ben.runner("show", run).code == 0
    assert ben.runner("verify", run).code == 0


def added(records: bytes, *names: str, first: bool = False) -> bytes:
    """The archive with further members, after those it has or before them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(records)) as old, tarfile.open(fileobj=made, mode="w:gz") as new:
        own = [(member.name, file.read()) for member in old if (file := old.extractfile(member)) is not None]
        others = [(name, b"print('executed')") for name in names]
        for name, content in others + own if first else own + others:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return made.getvalue()
