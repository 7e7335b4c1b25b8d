"""A mapped step is one job in SageMaker, and gives what it gives here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cloud import BUCKET, SAGEMAKER, RemoteProject, jobs, running
from small_sagemaker import CLIENT_KEY, Call, SmallSageMaker
from support.browser import browser
from support.job_cases import wait_for
from support.projects import PAGES, Project, parameters, recorded

from runner.errors import PipelineError
from runner.pipeline.plan import plan

TOML = """
name = "NAME"
[steps.keys]
notebook = "keys.ipynb"
outputs = { keys = "keys.json" }
[steps.fit]
notebook = "fit.ipynb"
map = { key = "keys.keys" }
outputs = { model = "m.txt" }
[steps.score]
notebook = "score.ipynb"
map = { key = "keys.keys" }
inputs = { models = "fit.model" }
outputs = { score = "s.txt" }
[[gate]]
metric = "fit.error"
max = 0.99
each = true
"""
LIMITED = ("CreateProcessingJob", "DescribeProcessingJob", "GetLogEvents", "DescribeLogStreams")


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


def write(project: Project, name: str, keys: Sequence[Any], *, fails: Sequence[Any] = ()) -> None:
    project.write(
        "keys.ipynb", parameters("keys: str = ''"), f"import json; open(keys, 'w').write(json.dumps({list(keys)!r}))"
    )
    project.write(
        "fit.ipynb",
        parameters("key: str = ''\nmodel: str = ''"),
        f"assert key not in {list(fails)!r}, 'no rows'\nopen(model, 'w').write('model of ' + key)",
        recorded("error", "len(key) / 100"),
    )
    project.write(
        "score.ipynb",
        parameters("key: str = ''\nmodels: str = ''\nscore: str = ''"),
        "import json\n"
        "(folder,) = [one['folder'] for one in json.load(open(f'{models}/keys.json')) if one['key'] == key]\n"
        "open(score, 'w').write(open(f'{models}/{folder}/m.txt').read() + ' scored')",
    )
    project.toml(TOML.replace("NAME", name))


def mine(cloud: SmallSageMaker, name: str) -> list[str]:
    return [job for job in jobs(cloud) if job.startswith(f"{name}-")]


def lines(project: Project, step: str) -> list[tuple[Any, str]]:
    return [(key["key"], key["status"]) for key in project.step(step)["result"]["mapped"]["keys"]]


def scored(project: Project) -> dict[str, str]:
    folder = project.runs[-1] / "steps/score/out/score"
    return {place["key"]: (folder / place["folder"] / "s.txt").read_text() for place in index(folder)}


def index(folder: Path) -> list[dict[str, str]]:
    places: list[dict[str, str]] = json.loads((folder / "keys.json").read_text())
    return places


@pytest.mark.soak
def test_all_keys_of_a_step_are_one_job_with_the_results_that_they_have_here(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    keys = ["north", "south", "two words"]
    far = RemoteProject(tmp_path / "far", cloud)
    near = Project(tmp_path / "near")
    for project in (far, near):
        project.folder.mkdir()
        write(project, "mapped", keys)
    mark = len(cloud.calls)
    done = far.runner("run", "--on", "sagemaker", "--json")
    assert (done.code, done.json["verdict"]) == (0, "pass"), done.err
    assert near.runner("run").code == 0
    assert [job.split("-")[-2] for job in mine(cloud, "mapped")] == ["fit", "keys", "score"]
    assert scored(far) == scored(near) == {key: f"model of {key} scored" for key in keys}
    for step in ("fit", "score"):
        assert lines(far, step) == lines(near, step)
        assert far.step(step)["result"]["outputs"] == near.step(step)["result"]["outputs"]
    asked = [call.parameters for call in cloud.calls[mark:] if call.access_key == CLIENT_KEY]
    assert not [parameters for parameters in asked if "north" in str(parameters)], "nothing is asked for each key"
    assert far.runner("verify", "--all").code == 0
    again = far.runner("run", "--on", "sagemaker", "--json")
    assert [step["status"] for step in again.json["steps"]] == ["cached"] * 3, again.err


@pytest.mark.soak
def test_a_later_attempt_executes_the_keys_that_are_missing_and_no_others(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = RemoteProject(tmp_path, cloud)
    (tmp_path / "rows.txt").write_text("")
    write(project, "again", ["north", "south"])
    project.write(
        "fit.ipynb",
        parameters("key: str = ''\nmodel: str = ''"),
        "import boto3\n"
        "rows = boto3.client('s3').list_objects_v2(Bucket='work', Prefix='team/south-rows').get('KeyCount')\n"
        "assert key != 'south' or rows, 'no rows'\n"
        "open(model, 'w').write('model of ' + key)",
        recorded("error", "len(key) / 100"),
    )
    failed = project.runner("run", "--on", "sagemaker")
    assert failed.code == 3, failed.err
    assert lines(project, "fit") == [("north", "succeeded"), ("south", "failed")]
    began = executed(project, "north")
    cloud.client("s3").put_object(Bucket=BUCKET, Key="team/south-rows", Body=b"10")
    done = project.runner("resume", "latest", "--json")
    assert (done.code, done.json["verdict"]) == (0, "pass"), done.err
    assert project.step("fit")["attempt"] == 2
    assert lines(project, "fit") == [("north", "succeeded"), ("south", "succeeded")]
    assert executed(project, "north") == began
    assert scored(project) == {key: f"model of {key} scored" for key in ("north", "south")}
    assert project.runner("verify", "--all").code == 0


def executed(project: Project, key: str) -> str:
    """When the key was executed, and by which attempt."""
    state = json.loads((project.runs[-1] / "steps/fit/keys" / key / "state.json").read_text())
    return f"{state['job']['attempt']} {state['result']['started']}"


def test_a_mapped_step_is_no_training_job_and_not_in_a_pipeline(cloud: SmallSageMaker, tmp_path: Path) -> None:
    project = RemoteProject(tmp_path, cloud)
    write(project, "refused", ["north"])
    pushed = project.here("pipeline", "push", "--dry-run")
    assert pushed.code == 2
    assert "a mapped step is not in a SageMaker Pipeline" in pushed.err
    file = project.folder / "pipeline.toml"
    file.write_text(file.read_text() + '[steps.fit.sagemaker]\njob = "training"\n')
    with pytest.raises(PipelineError, match="a mapped step is no training job"):
        plan(file)


@pytest.mark.soak
def test_thousands_of_keys_take_few_calls_little_memory_and_survive_a_kill(
    cloud: SmallSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = int(os.environ.get("RUNNER_KEYS", "200"))
    project = RemoteProject(tmp_path, cloud, SAGEMAKER.replace("poll_s = 0.2", "poll_s = 1"))
    write(project, "thousands", [f"key{number:05}" for number in range(count)])
    cloud.faults.rate(LIMITED, 5)
    mark, clock = len(cloud.calls), time.monotonic()
    killed = project.start("run", "--on", "sagemaker", "--json")
    wait_for(lambda: any("-fit-" in job for job in mine(cloud, "thousands")), seconds=600)
    time.sleep(5)  # in the middle of its keys
    killed.kill()
    killed.communicate()
    resumed = project.start("resume", "latest", "--json")
    watching = ThreadPoolExecutor(1).submit(peak_mb_of, resumed.pid)
    out, err = resumed.communicate()
    wall_s = time.monotonic() - clock
    cloud.faults.rate([], 0)
    assert (resumed.returncode, json.loads(out)["verdict"]) == (0, "pass"), err
    assert [job.split("-")[-2:] for job in mine(cloud, "thousands")] == [["fit", "1"], ["keys", "1"], ["score", "1"]]
    for step in ("fit", "score"):
        assert Counter(status for _, status in lines(project, step)) == {"succeeded": count}
    calls = [call for call in cloud.calls[mark:] if call.access_key == CLIENT_KEY and "/admin" not in str(call.arn)]
    kinds = Counter(call.action for call in calls)
    polls = sum(kinds[name] for name in LIMITED)
    peak_mb = watching.result()
    assert project.runner("report", "latest", env=PAGES).code == 0
    page = project.runs[-1] / "report.html"
    with browser(tmp_path / "profile") as tab:
        clock = time.monotonic()
        tab.open(page.as_uri())
        opened_s = time.monotonic() - clock
        assert tab.value("document.querySelectorAll('section table tbody tr').length") >= count * 2
    with capsys.disabled():
        print(
            f"\n{count} keys: {wall_s:.0f} s, {peak_mb:.0f} MB; page {page.stat().st_size / 1e6:.2f} MB, "
            f"opened in {opened_s:.1f} s; run.json {(page.parent / 'run.json').stat().st_size / 1e6:.1f} MB; {kinds}"
        )
    assert len(calls) - polls <= 3 * 20, kinds
    assert kinds["CreateProcessingJob"] - throttled(calls, "CreateProcessingJob") == 3
    assert polls <= 5 * wall_s + 10
    assert peak_mb < 500


def peak_mb_of(pid: int) -> float:
    """The most memory that the process has had, as it is seen ten times a second until it ends."""
    peak_kb = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            peak_kb = int(found[1])
            time.sleep(0.1)
    return peak_kb / 1024


def throttled(calls: Sequence[Call], action: str) -> int:
    return sum(call.action == action and call.status == 400 for call in calls)


@pytest.mark.soak
def test_a_step_whose_only_key_fails_has_its_error_whatever_the_size_of_the_archive(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    far = RemoteProject(tmp_path, cloud)
    write(far, "lonely", ["north"], fails=["north"])
    for arguments in (("run", "--on", "sagemaker"), ("resume", "latest")):
        assert far.here(*arguments).code == 3
        (key,) = far.step("fit")["result"]["mapped"]["keys"]
        assert "no rows" in key["error"]


@pytest.mark.soak
def test_a_key_whose_folder_is_lost_loses_nothing_of_the_others(cloud: SmallSageMaker, tmp_path: Path) -> None:
    far = RemoteProject(tmp_path, cloud)
    write(far, "torn", ["north", "south"])
    far.write(
        "fit.ipynb",
        parameters("key: str = ''\nmodel: str = ''"),
        "import boto3, pathlib, time\n"
        "rows = boto3.client('s3').list_objects_v2(Bucket='work', Prefix='team/torn-rows').get('KeyCount')\n"
        "open(model, 'w').write('model of ' + key)\n"
        "if key == 'south' and not rows:\n"
        "    time.sleep(3); pathlib.Path(model).parents[1].rename('/tmp/lost')",
        recorded("error", "len(key) / 100"),
    )
    assert far.runner("run", "--on", "sagemaker").code != 0
    assert lines(far, "fit") == [("north", "succeeded"), ("south", "skipped")]
    began = executed(far, "north")
    cloud.client("s3").put_object(Bucket=BUCKET, Key="team/torn-rows", Body=b"10")
    assert far.runner("resume", "latest").code == 0
    assert lines(far, "fit") == [("north", "succeeded"), ("south", "succeeded")]
    assert executed(far, "north") == began
