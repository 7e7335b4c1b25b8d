"""pipeline.toml as a SageMaker Pipeline: one story in the small SageMaker, from the push to the imported runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from account import identities
from cloud import BUCKET, RemoteProject, running
from hypothesis import given
from hypothesis import strategies as st
from small_sagemaker import CLIENT_KEY, SmallSageMaker, distribution_image
from small_sagemaker.trying import read_log
from support import sdk
from support.commands import environment
from support.flow import SETTINGS, TOML, Story, write
from support.projects import ROOT, Project, parameters, recorded

from runner.aws.bucket import Bucket
from runner.aws.evidence import executions
from runner.aws.pipelines.parameters import as_text
from runner.aws.pipelines.pin import pins, run_id
from runner.aws.pipelines.pin_target import BucketTargets
from runner.aws.pipelines.push import show
from runner.aws.pipelines.pushed import DryRunBucket, put_files
from runner.aws.pipelines.refusals import refuse
from runner.aws.pipelines.sdk import REGION_VARIABLE, SDK
from runner.aws.pipelines.step_groups import step_groups
from runner.aws.registry import SageMakerRegistry
from runner.aws.s3 import S3
from runner.aws.session import Session
from runner.cli.pipeline import _row
from runner.errors import PipelineError, UsageError
from runner.notebook.types import Type, read_text
from runner.pipeline.plan import Plan, plan
from runner.project import Project as Opened
from runner.run.ids import RUN_ID
from runner.run.store import Store, facts_of

SCHEMA = ROOT.parent / "shared" / "data" / "pipeline-definition.schema.json"


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def aws(cloud: SmallSageMaker) -> Iterator[None]:
    """The SDK takes seconds to import, so what needs it runs in this process where it can."""
    sdk.check_once()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def story(cloud: SmallSageMaker, aws: None, tmp_path_factory: pytest.TempPathFactory) -> Story:
    project = RemoteProject(tmp_path_factory.mktemp("flow"), cloud, SETTINGS)
    write(project)
    told = Story(project, cloud)
    fault = cloud.faults.add("CreatePipeline", "ThrottlingException", times=2)
    told.said["push"] = told.project.here("pipeline", "push", "--json")
    told.throttled = cloud.faults.hits(fault)
    assert told.said["push"].code == 0, told.said["push"].err
    cloud.faults.add("StartPipelineExecution", "LostReply")
    told.start("first", "-m", "the first")
    told.said["early"] = told.project.here("import", told.started["first"])
    told.follow("first")
    told.take_in("first")
    told.start_elsewhere("again")
    told.start("worse", "-p", "evaluate.score=0.1")
    told.start_elsewhere("broken", evaluate_sound="false")
    told.follow("again", "worse", "broken")
    told.said["approve"] = told.project.here("approve", "flow/1", "--reason", "looked at")
    assert told.said["approve"].code == 0, told.said["approve"].err
    return told


@pytest.fixture(scope="module")
def later(story: Story) -> Story:
    """The same story, with what comes after its first version."""
    story.start("champion")
    story.start_elsewhere("misfit", data_factor="banana")
    story.start_elsewhere("stopped")
    story.cloud.client("sagemaker").stop_pipeline_execution(
        PipelineExecutionArn=story.started["stopped"], ClientRequestToken="0" * 32
    )
    story.follow("champion", "misfit", "stopped")
    story.pushed.append(story.project.here("pipeline", "push", "--json").json["outcome"])
    story.project.write("nb/register.ipynb", *LATER)
    story.pushed.append(story.project.here("pipeline", "push", "--dry-run", "--json").json["outcome"])
    story.pushed.append(story.project.here("pipeline", "push", "--json").json["outcome"])
    story.start("edited")
    story.follow("edited")
    story.project.toml(TOML.replace("min = 0.5", "min = 0.4"))
    story.pushed.append(story.project.here("pipeline", "push", "--json").json["outcome"])
    story.start("threshold")
    story.follow("threshold")
    return story


LATER = (
    parameters("model: str = ''\nverdict: str = ''"),
    "from runner.model import register\nregister(model, card='# Later', description='a later one')",
)


# The first execution


def test_an_execution_registers_the_model_of_a_run_that_passed_once(story: Story) -> None:
    assert story.seen["first"]["status"] == "Succeeded"
    assert story.steps("first") == dict.fromkeys(["data", "train", "evaluate", "gate-passed", "register"], "ran")
    assert sum(step["job"] is not None for step in story.seen["first"]["steps"]) == 4  # none for pins or gate alone
    packages = story.cloud.client("sagemaker").list_model_packages(ModelPackageGroupName="flow", SortBy="CreationTime")
    found = {item["ModelPackageVersion"]: item for item in packages["ModelPackageSummaryList"]}
    described = story.cloud.client("sagemaker").describe_model_package(
        ModelPackageName=found[1]["ModelPackageArn"],
    )
    assert described["CustomerMetadataProperties"]["runner-run"] == story.runs["first"]
    card = json.loads(described["ModelCard"]["ModelCardContent"])
    assert [step["name"] for step in card["evaluation_details"]] == ["data", "evaluate"]
    assert described["ModelCard"]["ModelCardStatus"] == "Approved"
    assert [found[number]["ModelApprovalStatus"] for number in sorted(found)] == ["Approved"]
    assert [event["kind"] for event in story.project.here("history", "flow", "--json").json] == [
        "registered",
        "approved",
    ]


@pytest.mark.soak
def test_every_model_that_passes_is_a_version_that_waits_for_its_decision(later: Story) -> None:
    packages = later.cloud.client("sagemaker").list_model_packages(ModelPackageGroupName="flow", SortBy="CreationTime")
    found = {item["ModelPackageVersion"]: item for item in packages["ModelPackageSummaryList"]}
    assert [found[number]["ModelApprovalStatus"] for number in sorted(found)] == [
        "Approved",
        *["PendingManualApproval"] * 3,
    ]


def test_a_throttled_push_and_a_lost_reply_make_one_pipeline_and_one_execution(story: Story) -> None:
    assert story.throttled == 2
    assert story.said["push"].json["outcome"] == "created"
    pages = story.cloud.client("sagemaker").list_pipeline_executions(PipelineName="flow")
    assert sorted(item["PipelineExecutionArn"] for item in pages["PipelineExecutionSummaries"]) == sorted(
        story.started.values()
    )


def test_the_pipeline_has_the_projects_tags_and_its_jobs_too(story: Story) -> None:
    client = story.cloud.client("sagemaker")
    tags = client.list_tags(ResourceArn=story.said["push"].json["arn"])["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "blue", "runner:project": "flow"}
    job = client.describe_processing_job(ProcessingJobName=story.seen["first"]["steps"][0]["job"])
    tags = client.list_tags(ResourceArn=job["ProcessingJobArn"])["Tags"]
    assert {"Key": "team", "Value": "blue"} in tags
    assert {"Key": "runner:step", "Value": "data"} in tags


def test_an_execution_that_goes_on_is_not_imported(story: Story) -> None:
    assert story.said["early"].code == 2
    assert "Import it when it has ended." in story.said["early"].err


# Caching


def test_a_second_execution_takes_every_step_from_the_first(story: Story) -> None:
    assert story.steps("again") == {
        "data": "cached",
        "train": "cached",
        "evaluate": "cached",
        "gate-passed": "ran",
        "register": "cached",
    }


@pytest.mark.soak
def test_a_new_champion_has_the_model_evaluated_again(later: Story) -> None:
    assert later.steps("champion") == {
        "data": "cached",
        "train": "cached",
        "evaluate": "ran",
        "gate-passed": "ran",
        "register": "ran",
    }
    manifest = later.manifest("champion")
    assert (manifest["champion"]["version"], manifest["champion"]["run"]) == (1, later.runs["first"])
    assert [rule["outcome"] for rule in manifest["verdict"]["rules"]] == ["pass", "pass"]
    assert [rule["outcome"] for rule in later.manifest("first")["verdict"]["rules"]] == ["pass", "not judged"]


@pytest.mark.soak
def test_a_push_after_one_notebook_was_edited_leaves_the_other_steps_cached(later: Story) -> None:
    assert later.pushed == ["unchanged", "updated", "updated", "updated"]
    assert {name for name, how in later.steps("edited").items() if how == "ran"} == {"gate-passed", "register"}
    assert later.manifest("edited")["model_version"]["version"] == 3


@pytest.mark.soak
def test_new_thresholds_are_judged_and_execute_no_notebook_but_that_which_has_the_verdict(later: Story) -> None:
    assert {name for name, how in later.steps("threshold").items() if how == "ran"} == {"gate-passed", "register"}
    manifest = later.manifest("threshold")
    assert [rule["rule"]["min"] for rule in manifest["verdict"]["rules"]] == [0.4, 0.6]
    taken = later.state("threshold", "evaluate")
    assert (taken["status"], taken["from_run"]) == ("cached", later.runs["champion"])


def test_a_changed_parameter_runs_what_depends_on_it(story: Story) -> None:
    assert [story.steps("worse")[name] for name in ("data", "train", "evaluate")] == ["cached", "cached", "ran"]
    assert story.manifest("worse")["overrides"] == {"evaluate.score": "0.1"}
    assert story.state("worse", "evaluate")["parameters"] == {"score": 0.1, "sound": True}


# The gate, and what goes wrong


def test_a_gate_that_says_no_fails_the_execution_with_its_reasons(story: Story) -> None:
    assert story.seen["worse"]["status"] == "Failed"
    said = story.seen["worse"]["steps"][-1]
    assert said["name"] == "gate-failed"
    assert "The gate's verdict is fail" in said["reason"]
    assert "evaluate.score is 0.1, 0.4 below the required minimum 0.5." in said["reason"]


def test_a_gate_that_says_no_is_a_run_that_ended_well_with_a_failing_verdict(story: Story) -> None:
    manifest = story.manifest("worse")
    assert (manifest["status"], manifest["verdict"]["outcome"]) == ("succeeded", "fail")
    assert story.state("worse", "register")["status"] == "skipped"
    assert story.state("worse", "register")["why"] == "the gate's verdict is fail"


def test_a_failing_cell_is_in_the_status_and_in_the_imported_run(story: Story) -> None:
    assert story.seen["broken"]["status"] == "Failed"
    failed = next(step for step in story.seen["broken"]["steps"] if step["status"] == "Failed")
    assert failed["name"] == "evaluate"
    assert failed["reason"] == "AssertionError: no sound table in cell [3] assert sound, 'no sound table'"
    manifest = story.manifest("broken")
    assert (manifest["status"], manifest["verdict"]) == ("failed", None)
    error = story.state("broken", "evaluate")["result"]["error"]
    assert (error["kind"], error["cell"]) == ("exception", 3)
    folder = story.project.folder / "runs" / story.runs["broken"] / "steps" / "evaluate"
    assert (folder / "executed.ipynb").exists()


@pytest.mark.soak
def test_a_value_that_does_not_fit_fails_before_any_notebook_runs(later: Story) -> None:
    assert later.steps("misfit") == {"data": "Failed"}
    reason = later.seen["misfit"]["steps"][0]["reason"]
    assert reason == "-p data.factor: 'banana' does not fit int, declared in nb/data.ipynb."
    manifest = later.manifest("misfit")
    assert (manifest["status"], [step["status"] for step in manifest["steps"]]) == ("failed", ["failed", *[None] * 3])
    assert reason in manifest["steps"][0]["result"]["error"]["evalue"]


@pytest.mark.soak
def test_a_stopped_execution_is_an_interrupted_run(later: Story) -> None:
    manifest = later.manifest("stopped")
    first, *others = [step["status"] for step in manifest["steps"]]
    assert (manifest["status"], others) == ("interrupted", [None] * 3)
    assert first in (None, "interrupted")  # whether it had begun


def test_an_execution_of_a_pipeline_that_was_not_pushed_from_here_is_not_imported(
    story: Story, cloud: SmallSageMaker
) -> None:
    client = cloud.client("sagemaker")
    stop = {"Name": "stop", "Type": "Fail", "Arguments": {"ErrorMessage": "no"}}
    text = json.dumps({"Version": "2020-12-01", "Steps": [stop]})
    client.create_pipeline(PipelineName="foreign", PipelineDefinition=text, RoleArn="arn:aws:iam::123456789012:role/r")
    story.started["foreign"] = client.start_pipeline_execution(PipelineName="foreign")["PipelineExecutionArn"]
    anybody = replace(story.project, extra={"AWS_ACCESS_KEY_ID": CLIENT_KEY})  # who may look at others' Pipelines
    replace(story, project=anybody).follow("foreign")
    done = anybody.here("import", story.started.pop("foreign"))
    assert (done.code, "is not of a Pipeline that `runner pipeline push` made" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "evaluate.scor=1"], "did you mean `score`?"),
        (["-p", "factor=x"], "'x' does not fit int, declared in nb/data.ipynb."),
        (["-p", "evaluate.champion=approved:other"], "is not a parameter of the Pipeline as it was pushed"),
        (["-p", "InstanceTyp=ml.m5.large"], "no notebook declares it"),
    ],
)
def test_start_refuses_what_a_run_would_refuse_and_what_was_not_pushed(
    story: Story, arguments: list[str], said: str
) -> None:
    done = story.project.here("pipeline", "start", *arguments)
    assert (done.code, said in done.err) == (2, True), done.err


# Executions as runs


def assert_sound(story: Story, name: str) -> None:
    """It is a run, with a report."""
    manifest = story.manifest(name)
    run = story.runs[name]
    assert RUN_ID.match(run)
    assert manifest["on"] == "sagemaker"
    assert story.started[name] in manifest["note"]
    verified = story.project.here("verify", run)
    assert verified.code == 0, verified.out + verified.err
    shown = story.project.here("show", run)
    assert shown.code == 0, shown.err


@pytest.mark.parametrize("name", ["first", "again", "worse", "broken"])
def test_every_execution_is_a_sound_run_with_a_report(story: Story, name: str) -> None:
    assert_sound(story, name)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["champion", "misfit", "stopped", "edited", "threshold"])
def test_every_later_execution_is_a_sound_run_with_a_report(later: Story, name: str) -> None:
    assert_sound(later, name)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["worse", "broken"])
def test_an_imported_run_has_its_report(story: Story, name: str) -> None:
    story.manifest(name)
    done = story.project.runner("report", story.runs[name])
    assert done.code == 0, done.err
    assert (story.project.folder / "runs" / story.runs[name] / "report.html").exists()
    assert (story.project.folder / "runs" / story.runs[name] / "steps" / "evaluate" / "executed.html").exists()


def test_a_cached_step_says_which_run_it_comes_from(story: Story) -> None:
    story.manifest("again")
    for name in ("data", "train", "evaluate", "register"):
        state = story.state("again", name)
        assert (state["status"], state["from_run"]) == ("cached", story.runs["first"])
    assert story.manifest("again")["model_version"] == story.manifest("first")["model_version"]
    shown = story.project.here("show", story.runs["again"])
    assert f"cached     from {story.runs['first']}" in shown.out


def test_importing_twice_gives_the_same_run(story: Story) -> None:
    file = story.project.folder / "runs" / story.runs["first"] / "run.json"
    before = file.read_bytes()
    done = story.project.here("import", story.started["first"].rpartition("/")[2], "--no-report")
    assert (done.code, done.out.splitlines()[0]) == (0, f"run {story.runs['first']}")
    assert file.read_bytes() == before


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("end", "old", "new"),
    [
        ("/train/result.json", '"out/model/"', '"out/../../../../../victim/"'),
        ("/train/result.json", '"executed.ipynb"', '"VICTIM"'),
        ("/train/result.json", '"executed.ipynb"', '"result.json"'),
        ("/data/job.json", '"step": "data"', '"step": "../../data"'),
        ("/data/job.json", '"step": "data"', '"step": "train"'),
        ("/evaluate/verdict.json", '"outcome"', '"outcom"'),
        ("/notebook.ipynb", "hello", "hullo"),
    ],
)
def test_an_execution_whose_records_were_altered_leaves_nothing_behind(
    story: Story, cloud: SmallSageMaker, tmp_path: Path, end: str, old: str, new: str
) -> None:
    """What the jobs left in the bucket is anybody's who may write there."""
    other = RemoteProject(tmp_path / "other", cloud, SETTINGS)
    (tmp_path / "victim").mkdir()
    write(other)
    s3, arn = cloud.client("s3"), story.started["first"]
    below = f"team/out/runs/{arn.rpartition('/')[2]}" if not end.startswith("/note") else "team/out/steps/"
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=below)["Contents"]
    before = {
        item["Key"]: s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
        for item in listed
        if item["Key"].endswith(end)
    }
    try:
        for key, content in before.items():
            said = content.replace(old.encode(), new.replace("VICTIM", str(tmp_path / "victim" / "x")).encode())
            s3.put_object(Bucket=BUCKET, Key=key, Body=said + b" " if said == content else said)
        done = other.here("import", arn, "--no-report")
    finally:
        for key, content in before.items():
            s3.put_object(Bucket=BUCKET, Key=key, Body=content)
    assert (done.code in (7, 8), "Traceback" in done.err) == (True, False), done.err  # 7: as if it came damaged
    assert not list((other.folder / "runs").glob("2*"))
    assert not list((tmp_path / "victim").iterdir())
    assert other.here("import", arn, "--no-report").code == 0


def test_an_imported_run_has_parameters_as_declared_and_its_version_verifies(story: Story) -> None:
    assert story.state("first", "data")["parameters"] == {"factor": 2, "level": "007"}
    assert story.manifest("first")["note"].startswith("the first (arn:")
    verified = story.project.here("verify", "flow/1")
    assert verified.code == 0, verified.out + verified.err
    fetched = story.project.here("fetch", story.runs["first"])
    assert fetched.code == 0, fetched.err


def assert_found(story: Story, folder: Path, version: int) -> None:
    """What the execution of a version has made; a monitor compares with it."""
    opened = Opened(story.project.folder / "pipeline.toml")
    bucket = Bucket(opened.session(), BUCKET, "team/out/")
    store = Store(folder / "runs", S3(bucket.session))
    store.prepare()
    registry = opened.registry
    assert isinstance(registry, SageMakerRegistry)
    made = dict(BucketTargets(opened.spec, bucket, store, registry, folder).outputs_of(registry.get("flow", version)))
    assert made.keys() == {"table", "model"}
    (fact,) = facts_of(made["table"]).values()
    assert store.object(fact).read_text() == "hello\nhello\n007"


def test_what_the_execution_of_a_version_has_made_is_found_by_the_registry(story: Story, tmp_path: Path) -> None:
    assert_found(story, tmp_path, 1)


@pytest.mark.soak
def test_what_a_version_has_taken_from_an_earlier_execution_is_found(later: Story, tmp_path: Path) -> None:
    assert_found(later, tmp_path, 2)


# The definition


def test_show_prints_what_a_push_makes_without_asking_anybody(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # what Studio leaves in the clone of a project, from which the SDK would take tags
    told = story.project.folder / ".sagemaker-code-config"
    told.write_text('{"sagemakerProjectId": "p-1", "sagemakerProjectName": "churn"}')
    shown = story.project.here("pipeline", "show")
    told.unlink()
    assert (shown.code, shown.err) == (0, "")
    found = story.cloud.client("sagemaker").describe_pipeline(PipelineName="flow")
    assert shown.json == json.loads(found["PipelineDefinition"])


@pytest.fixture(scope="module")
def definition(story: Story) -> Any:
    return definition_of(story.project.folder / "pipeline.toml")


def definition_of(file: Path) -> Any:
    return show(plan(file), Opened(file).store_here, profile=None)


def test_the_definition_fits_the_services_schema_but_for_what_the_sdk_itself_does(definition: Any) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"the service's schema is not on this machine ({SCHEMA})")
    assert not misfits(definition)
    # elsewhere nothing is excused: a Std:JsonGet that is an argument itself is found
    inputs = definition["Steps"][1]["Arguments"]["ProcessingInputs"]
    joined, _ = inputs[-1]["S3Input"]["S3Uri"]["Std:Join"]["Values"]
    bare = json.loads(json.dumps(definition))
    bare["Steps"][1]["Arguments"]["ProcessingInputs"][-1]["S3Input"]["S3Uri"] = joined
    assert misfits(bare)


@pytest.mark.soak
@pytest.mark.parametrize("own", ["", "train", "evaluate", "register"])
def test_definitions_with_shared_jobs_fit_the_services_schema_too(
    planned: Callable[[str, str], Plan], own: str, aws: None
) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"the service's schema is not on this machine ({SCHEMA})")
    alone = f'[steps.{own}.sagemaker]\ninstance = "ml.m5.large"\n' if own else ""
    made = planned("[sagemaker]", f"{alone}[sagemaker]\ntogether = true")
    (made.root / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    definition = definition_of(made.file)
    assert not misfits(definition)
    jobs = json.dumps(definition).count('"Type": "Processing"')
    assert jobs == {"": 1, "train": 3, "evaluate": 3, "register": 2}[own]


def spread(planned: Callable[[str, str], Plan], workers: int) -> Plan:
    """The plan with a cluster on two machines for train."""
    cluster = f'cluster = {{ engine = "dask", workers = {workers} }}\nsagemaker = {{ instance_count = 2 }}\n'
    return planned("[steps.evaluate]", f"{cluster}[steps.evaluate]")


@pytest.mark.soak
def test_a_step_with_a_cluster_has_a_job_on_its_machines_and_other_jobs_have_one(
    planned: Callable[[str, str], Plan], tmp_path: Path, aws: None
) -> None:
    bundles = [rehearsed(spread(planned, workers), tmp_path).bundles["train"] for workers in (2, 5)]
    assert bundles[0] == bundles[1], "more workers are no reason to run again"
    made = spread(planned, 2)
    definition = definition_of(made.file)
    jobs = {step["Name"]: step["Arguments"] for step in definition["Steps"] if step["Type"] == "Processing"}
    counts = {name: job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] for name, job in jobs.items()}
    assert counts == {"data": 1, "train": 2, "evaluate": 1}
    assert [_row(step, "")[1] for step in definition["Steps"][:2]] == ["Processing", "Processing × 2"]
    if SCHEMA.exists():
        assert not misfits(definition)
    # the gate has one, whatever [sagemaker] says for steps
    clusters = made.file.read_text().replace("outputs", 'cluster = { engine = "dask", workers = 2 }\noutputs')
    for step in ("evaluate", "register"):
        clusters = clusters.replace(f"[steps.{step}]", f'[steps.{step}]\ncluster = {{ engine = "dask", workers = 2 }}')
    clusters = clusters.replace('cluster = { engine = "dask", workers = 2 }\nsagemaker = { instance_count = 2 }\n', "")
    apart = clusters.replace('inputs = { model = "train.model", champion', "inputs = { champion")
    made.file.write_text(apart.replace("[sagemaker]", "[sagemaker]\ninstance_count = 2"))
    steps = {step["Name"]: step["Arguments"] for step in definition_of(made.file)["Steps"]}
    assert steps["gate"]["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 1
    assert steps["evaluate"]["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == 2


def misfits(definition: Any) -> list[tuple[list[Any], str]]:
    """Where a definition does not fit the service's schema."""
    import jsonschema

    schema = json.loads(SCHEMA.read_text())
    schema["definitions"]["ProcessingStep"]["properties"]["PropertyFiles"] = {"type": "array"}
    errors = jsonschema.Draft7Validator(schema).iter_errors(excused(definition))
    return [(list(error.absolute_path), error.message[:200]) for error in errors]


# a plain string by the schema; docs/sagemaker.md names the last among what nobody has verified
JOINED = re.compile("S3Uri|ErrorMessage|RUNNER_(PIN|RESULT)_[0-9_]+")
OPERANDS = ("LeftValue", "RightValue")


def excused(value: Any, name: str = "") -> Any:
    """The definition with text for Std:Join and Std:JsonGet at the places that the schema is known to be too old for."""
    if isinstance(value, dict):
        joined = JOINED.fullmatch(name) and value.keys() == {"Std:Join"}
        if joined or (name in OPERANDS and value.keys() == {"Std:JsonGet"}):
            return "text"
        return {key: excused(item, key) for key, item in value.items()}
    return [excused(item) for item in value] if isinstance(value, list) else value


def test_nothing_in_what_a_step_is_cached_by_differs_between_executions(definition: Any) -> None:
    steps = [step for step in definition["Steps"] if step.get("CacheConfig")]
    assert [step["Name"] for step in steps] == ["train", "evaluate"]
    for step in steps:
        keyed = [step["Arguments"].get(name) for name in ("AppSpecification", "Environment", "ProcessingInputs")]
        assert "Execution." not in json.dumps(keyed)


def test_the_list_of_steps_says_what_is_cached_and_what_comes_after_what(story: Story) -> None:
    shown = story.project.here("pipeline", "show", "--text")
    assert shown.code == 0, shown.err
    rows = [line.split() for line in shown.out.splitlines() if line]
    assert ["evaluate-score", "0.75"] in rows
    assert ["data", "Processing", "no", "–"] in rows
    assert ["evaluate", "Processing", "yes", "data,", "train"] in rows
    assert next(row for row in rows if row[0] == "register")[3:5] == ["if", "gate-passed,"]


def test_the_doctor_tells_what_the_latest_execution_has_shown(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(story.project.folder / "pipeline.toml")
    spec = opened.spec
    found = executions(opened.session(), spec)
    latest = story.cloud.client("sagemaker").list_pipeline_executions(
        PipelineName="flow", SortBy="CreationTime", SortOrder="Descending"
    )["PipelineExecutionSummaries"][0]
    said = f"execution {latest['PipelineExecutionArn'].rpartition('/')[2]} is {latest['PipelineExecutionStatus']}; "
    assert found.status == "ok"
    assert re.fullmatch(re.escape(said) + r"\d+ steps?, \d+ of them cached", found.said)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CLIENT_KEY)  # the caller's policy is for the project's own Pipeline
    nowhere = executions(opened.session(), msgspec.structs.replace(spec, name="nowhere"))
    assert (nowhere.status, "There is no Pipeline nowhere" in nowhere.said) == ("ok", True)


# Without the service


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[str, str], Plan]:
    """The plan of the story's project with one text of its pipeline.toml replaced."""

    def make(old: str = "", new: str = "") -> Plan:
        project = Project(tmp_path)
        write(project)
        return plan(project.toml((TOML + SETTINGS).replace(old, new) if old else TOML + SETTINGS))

    return make


def rehearsed(made: Plan, tmp_path: Path) -> Any:
    (tmp_path / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    bucket = DryRunBucket(Session("eu-west-1", anonymous=True), BUCKET, "team/")
    refuse(made, None)
    return put_files(made, bucket, store=Store(tmp_path / "runs"), profile=None)


# Which jobs there are


SIDES = """
name = "sides"
[steps.left]
notebook = "nb/side.ipynb"
inputs = { source = "./in.txt" }
[steps.right]
notebook = "nb/side.ipynb"
inputs = { source = "./in.txt" }
[[gate]]
metric = "left.size"
min = 1
[steps.last]
notebook = "nb/last.ipynb"
inputs = { verdict = "gate.verdict" }
"""


@pytest.mark.soak
def test_steps_that_wait_for_nothing_hold_to_one_pin_and_the_gate_has_a_job_where_no_step_comes_last(
    cloud: SmallSageMaker, aws: None, tmp_path: Path
) -> None:
    told = Story(RemoteProject(tmp_path, cloud, SETTINGS), cloud)
    size = recorded("size", "float(len(open(source).read()))")
    told.project.write("nb/side.ipynb", parameters("source: str = ''"), size)
    told.project.write("nb/last.ipynb", parameters("verdict: str = ''"), "assert 'pass' in open(verdict).read()")
    (tmp_path / "in.txt").write_text("hello\n")
    told.project.toml(SIDES)
    assert told.project.here("pipeline", "push").code == 0
    told.started["sides"] = told.project.here("pipeline", "start", "--json").json["arn"]
    mark = len(cloud.calls)
    told.follow("sides")
    assert told.steps("sides") == dict.fromkeys(["left", "right", "gate", "gate-passed", "last"], "ran")
    kept = f"runs/{told.seen['sides']['execution']}/pin/pins.json"
    puts = [call for call in cloud.calls[mark:] if call.action == "PutObject" and kept in str(call.parameters)]
    assert [call.parameters.get("IfNoneMatch") for call in puts] == ["*"] * len(puts)
    assert len({told.state("sides", name)["job"]["run"] for name in ("left", "right", "last")}) == 1
    assert told.project.here("verify", told.runs["sides"]).code == 0


@pytest.mark.soak
@pytest.mark.parametrize("judge", ["evaluate", ""])
def test_the_job_that_judges_registers_the_model_where_no_step_does_and_once(
    cloud: SmallSageMaker, aws: None, tmp_path: Path, judge: str
) -> None:
    name = f"itself{'-' + judge if judge else ''}"
    told = Story(RemoteProject(tmp_path, cloud, SETTINGS), cloud)
    write(told.project)
    toml = (
        TOML.partition("[steps.register]")[0]
        .replace('"flow"', f'"{name}"')
        .replace("approved:flow", "approved:" + name)
    )
    if not judge:  # nothing comes after all others, so the gate has a job of its own
        toml = toml.replace('inputs = { model = "train.model", champion', "inputs = { champion")
        toml = toml.replace('inputs = { table = "data.table" }', 'inputs = { table = "./in.txt" }')
    told.project.toml(toml)
    assert f"registers {name} from train.model, with a card" in told.project.here("check").out
    assert told.project.here("pipeline", "push").code == 0
    for execution in ("first", "again"):
        told.start(execution)
        told.follow(execution)
        told.take_in(execution)
    steps = ["data", "train", "evaluate", *(["gate"] if not judge else []), "gate-passed"]
    assert list(told.steps("first")) == steps
    versions = told.project.here("models", name, "--json").json
    assert [(version["version"], version["status"], version["run"]) for version in versions] == [
        (1, "pending", told.runs["first"])
    ]
    found = [told.manifest(execution)["model_version"] for execution in ("first", "again")]
    assert found == [{"name": name, "version": 1, "status": "pending"}] * 2
    verified = told.project.here("verify", told.runs["first"])
    assert verified.code == 0, verified.out
    described = cloud.client("sagemaker").describe_model_package(
        ModelPackageName=cloud.client("sagemaker").list_model_packages(ModelPackageGroupName=name)[
            "ModelPackageSummaryList"
        ][0]["ModelPackageArn"]
    )
    details = json.loads(described["ModelCard"]["ModelCardContent"])["additional_information"]["custom_details"]
    assert "`data.factor`: `2`" in details["Parameters"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", [("data", "", True), ("train", "", False), ("evaluate", "evaluate", False), ("register", "", False)]),
        ("[sagemaker]", "[sagemaker]\ntogether = true", [("data train evaluate register", "evaluate", True)]),
        (
            "[sagemaker]",
            '[steps.train.sagemaker]\ninstance = "ml.m5.4xlarge"\n[sagemaker]\ntogether = true',
            [("data", "", True), ("train", "", False), ("evaluate register", "evaluate", False)],
        ),
        (
            "[sagemaker]",
            "[steps.evaluate.sagemaker]\ntogether = false\n[sagemaker]\ntogether = true",
            [("data train", "", True), ("evaluate", "evaluate", False), ("register", "", False)],
        ),
        ('inputs = { model = "train.model", champion', 'inputs = { champion', [
            ("data", "", True), ("train", "", False), ("evaluate", "", True), ("register", "", False),
        ]),
    ],
)  # fmt: skip
def test_a_job_has_one_step_or_those_that_may_share_it_and_the_last_before_the_verdict_judges(
    planned: Callable[[str, str], Plan], old: str, new: str, expected: list[tuple[str, str, bool]]
) -> None:
    found = step_groups(planned(old, new))
    assert [(" ".join(share.names), share.judges, share.first) for share in found] == expected


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('registry = "sagemaker"', 'registry = "local"', "steps.evaluate.inputs.champion: the approved version"),
        ('registry = "sagemaker"', 'registry = "local"', "is on this machine, where no execution can register"),
        ("[steps.train]", "[steps.pin]", "`pin` is a step of the Pipeline's own; rename it."),
        ('level = "007"', 'InstanceType = "x"', "InstanceType: "),
        ("./in.txt", "https://h.example/t?X-Amz-Signature=5ca1", "?X-Amz-Signature=*** is signed or has a password"),
    ],
)
def test_a_push_refuses_what_could_not_run_there(
    planned: Callable[[str, str], Plan], tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(PipelineError) as refused:
        rehearsed(renamed(planned, old, new), tmp_path)
    assert said in str(refused.value)


def renamed(planned: Callable[[str, str], Plan], old: str, new: str) -> Plan:
    if old == "[steps.train]":
        planned("", "")
        text = (TOML + SETTINGS).replace("steps.train]", "steps.pin]").replace("train.model", "pin.model")
        return planned(TOML + SETTINGS, text)
    return planned(old, new)


def test_prose_outputs_and_other_steps_leave_a_steps_bundle_as_it_was(
    planned: Callable[[str, str], Plan], tmp_path: Path
) -> None:
    before = rehearsed(planned("", ""), tmp_path).bundles
    made = planned("min = 0.5", "min = 0.4")
    notebook = tmp_path / "nb" / "train.ipynb"
    document = json.loads(notebook.read_text())
    document["cells"][1] |= {
        "execution_count": 7,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}],
    }
    notebook.write_text(json.dumps(document))
    after = rehearsed(made, tmp_path).bundles
    assert {name for name in before if before[name] != after[name]} == {"pin"}


def test_without_the_extra_the_way_to_install_it_is_said(story: Story) -> None:
    blocked = "import sys; sys.modules['sagemaker'] = None\nfrom runner.cli import entry\nsys.exit(entry(['pipeline', 'show']))"
    done = subprocess.run(
        [sys.executable, "-c", blocked],
        cwd=story.project.folder,
        env=environment(story.cloud.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["sagemaker"]
    assert f"pip install {shlex.join(declared)}" in done.stderr


def test_the_sdk_is_used_by_public_names_and_nothing_is_patched_for_it() -> None:
    """Read from the sources: where it is imported, its names, and what is set in the process for it."""
    uses: set[str] = set()
    for path in (ROOT / "runner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.partition(".")[0] == "sagemaker"], path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("sdk", "self.sdk"):
                assert isinstance(node.ctx, ast.Load), path  # nothing of it is replaced
                uses.add(node.attr)
            if path.name not in ("definition.py", "sdk.py"):
                continue
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                assert ast.unparse(node.value) != "os.environ" or ast.unparse(node.slice) == "REGION_VARIABLE"
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in (
                    "setattr",
                    "os.environ.update",
                    "os.environ.setdefault",
                    "os.putenv",
                )
    assert uses == SDK.keys()
    assert REGION_VARIABLE == "AWS_DEFAULT_REGION"
    for name, module in SDK.items():
        assert not [part for part in (name, *module.split(".")) if part.startswith("_")]


def test_status_and_start_say_that_there_is_no_pipeline_yet(cloud: SmallSageMaker, tmp_path: Path) -> None:
    project = RemoteProject(tmp_path, cloud, SETTINGS)
    write(project)
    project.toml(TOML.replace('name = "flow"', 'name = "other"', 1))
    for command in ("status", "start"):
        done = project.here("pipeline", command)
        assert (done.code, "runner pipeline push" in done.err) == (2, True)


@pytest.mark.soak
def test_what_was_started_for_a_commit_is_not_started_again(cloud: SmallSageMaker, tmp_path: Path) -> None:
    project = RemoteProject(tmp_path, cloud)
    project.write("n.ipynb", parameters("x: int = 1"), "x")
    project.toml('name = "commits"\n[steps.only]\nnotebook = "n.ipynb"\nparameters = { x = 2 }\n')

    def start(*arguments: str) -> str:
        done = project.here("pipeline", "start", "--json", *arguments)
        assert done.code == 0, done.err
        arn: str = done.json["arn"]
        cloud.client("sagemaker").stop_pipeline_execution(PipelineExecutionArn=arn)  # its jobs are not the question
        return arn

    assert project.here("pipeline", "push").code == 0
    first = project.here("pipeline", "start", "--json", "--once", "abc").json["arn"]
    assert project.here("pipeline", "start", "--json", "--once", "abc").json["arn"] == first
    others = [start("--once", "def"), start("--once", "abc", "-p", "x=3"), start(), start()]
    project.write("n.ipynb", parameters("x: int = 1"), "x + 1")
    assert project.here("pipeline", "push").code == 0
    others.append(start("--once", "abc"))
    assert len({first, *others}) == 6


@pytest.mark.parametrize("command", ["show", "push", "start", "status"])
def test_every_command_has_help_with_an_example(tmp_path: Path, command: str) -> None:
    done = Project(tmp_path).runner("pipeline", command, "--help")
    assert done.code == 0
    assert f"runner pipeline {command}" in done.out.partition("Example:")[2]


# What an execution is pinned to


class Table(BaseHTTPRequestHandler):
    """One small table."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.send_header("ETag", '"one"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"a\n1\n2")

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_a_source_on_the_web_is_brought_into_the_bucket_once_and_an_absent_one_is_absent(
    cloud: SmallSageMaker,
    aws: None,
    planned: Callable[[str, str], Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Table)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        pushed = rehearsed(planned("", ""), tmp_path).pushed
        values = {parameter.key: parameter.default for parameter in pushed.parameters}
        cloud.attach(identities(Project="flow", Bucket=BUCKET, Prefix="team/out", Model="flow"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"{CLIENT_KEY}.flow-jobs")  # `pin` is a job
        bucket = Bucket(Session(), BUCKET, "team/out/")
        arn = "arn:aws:sagemaker:eu-west-1:123456789012:pipeline/flow/execution/abcdefghijkl"
        web = {**values, "data.source": f"http://127.0.0.1:{server.server_port}/table.csv"}
        made = pins(pushed, web, bucket, execution=arn, started="2026-11-22T10:16:30.000Z")
        absent = pins(pushed, {**values, "data.source": ""}, bucket, execution=arn, started="2026-11-22T10:16:30Z")
    finally:
        server.shutdown()
        server.server_close()
    assert (made.run[:16], made.run) == ("20261122-101630-", absent.run)
    pin = made.pins["pin_1"]
    assert pin.of == "data.source"
    assert pin.address.endswith("/table.csv")
    assert bucket.get(pin.address.removeprefix(bucket.address(""))) == b"a\n1\n2"
    assert (absent.pins["pin_1"].fact.present, absent.pins["pin_1"].digest) == (False, "absent")
    with pytest.raises(PipelineError, match=r"data\.source: './x' is not an address that a job can read"):
        pins(pushed, {**values, "data.source": "./x"}, bucket, execution=arn, started="")


def test_the_run_of_an_execution_has_an_id_like_all_others() -> None:
    assert RUN_ID.match(run_id("2026-11-22T10:16:30.123Z", "arn:a"))
    assert RUN_ID.match(run_id("not a time", "arn:a"))
    assert run_id("2026-11-22T10:16:30Z", "arn:a") != run_id("2026-11-22T10:16:30Z", "arn:b")


PLAIN = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
KINDS = {str: "str", bool: "bool", int: "int", float: "float", type(None): "None", list: "list", dict: "dict"}


@given(PLAIN | st.text(max_size=300) | st.lists(PLAIN, max_size=5) | st.dictionaries(st.text(), PLAIN, max_size=4))
def test_a_value_becomes_a_text_that_is_read_as_that_value_or_none(value: Any) -> None:
    for type_ in (None, Type(KINDS[type(value)])):  # type: ignore[arg-type]
        text = as_text(value, type_)
        if text is not None:
            assert len(text) <= 256
            assert (read_text(text, type_), type(read_text(text, type_))) == (value, type(value))
        else:
            assert isinstance(value, str | list | dict)


def test_a_step_with_more_inputs_than_a_job_takes_is_refused(
    planned: Callable[[str, str], Plan], tmp_path: Path, aws: None
) -> None:
    names = [f"i{number}" for number in range(9)]
    write(Project(tmp_path))
    Project(tmp_path).write("nb/train.ipynb", parameters("\n".join(f"{name}: str = ''" for name in [*names, "model"])))
    inputs = ", ".join(f'{name} = "data.table"' for name in names)
    text = (TOML + SETTINGS).replace('inputs = { table = "data.table" }', f"inputs = {{ {inputs} }}")
    file = tmp_path / "pipeline.toml"
    file.write_text(text)
    (tmp_path / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    with pytest.raises(UsageError, match="Step train has 9 inputs to copy; a processing job takes 8"):
        definition_of(file)


# Packages


@pytest.mark.soak
def test_pin_and_gate_install_nothing_in_an_image_that_is_not_the_lock(tmp_path: Path) -> None:
    """In SageMaker Distribution's image, by its user; notebooks that are executed have the lock's packages."""
    image = distribution_image()
    settings = SETTINGS.replace('packages = "image"', 'packages = "lock"').replace('"3.11"', '"3.12"')
    with running(image) as cloud:
        told = Story(RemoteProject(tmp_path, cloud, settings), cloud)
        write(told.project)
        assert told.project.here("pipeline", "push").code == 0
        told.start("first")
        told.follow("first")
        assert told.seen["first"]["status"] == "Succeeded", told.seen["first"]
        logs = cloud.client("logs")
        plain, made = "runner: no notebook is executed yet, nothing installed", "runner: made an environment of"
        looks = ("data", "evaluate")  # which pins, and which judges
        for step in told.seen["first"]["steps"]:
            if step["job"]:
                lines = [line for line in read_log(logs, step["job"]) if line.startswith((plain, made))]
                assert [line.startswith(plain) for line in lines] == [True, False][step["name"] not in looks :], lines
        told.project.toml(TOML.replace("min = 0.5", "min = 0.4"))
        assert told.project.here("pipeline", "push").code == 0
        told.start("threshold")
        told.follow("threshold")
        assert told.seen["threshold"]["status"] == "Succeeded", told.seen["threshold"]
        for step in told.seen["threshold"]["steps"]:
            if step["name"] in looks:
                assert read_log(logs, step["job"]) == [plain]
        locked = told.state("first", "data")["result"]["remote"]["packages"]
        recorded = told.manifest("first")["environment"]["packages"]
        assert recorded["papermill"] == locked["papermill"]
        assert recorded["xgboost-cpu"] == locked["xgboost-cpu"] == "3.2.0"  # and not the image's
