"""A pushed pipeline definition is really executed, and refused where the service would refuse it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError

from . import SmallSageMaker
from .trying import BUCKET, ROLE, ask, await_end, code_of, give, put, read_log, take, wait_for

RUN = {"Get": "Execution.PipelineExecutionId"}
Start = Callable[..., dict[str, Any]]


def join(on: str, *values: Any) -> dict[str, Any]:
    return {"Std:Join": {"On": on, "Values": list(values)}}


def get_output(step: str) -> dict[str, str]:
    return {"Get": f"Steps.{step}.ProcessingOutputConfig.Outputs['out'].S3Output.S3Uri"}


def process(name: str, script: str = "true", reads: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """A processing step with the output `out` that reads the outputs of the steps it names."""
    arguments = ask("unused", script)
    del arguments["ProcessingJobName"]
    arguments["ProcessingInputs"] = [item for step in reads for item in give(get_output(step), step)]  # type: ignore[arg-type]
    arguments["ProcessingOutputConfig"] = take(join("/", f"s3://{BUCKET}/runs", RUN, name))  # type: ignore[arg-type]
    arguments |= more.pop("arguments", {})
    return {"Name": name, "Type": "Processing", "Arguments": arguments, **more}


def write_definition(*steps: dict[str, Any], parameters: dict[str, Any] | None = None) -> str:
    types = {str: "String", int: "Integer", float: "Float", bool: "Boolean"}
    found = [{"Name": k, "Type": types[type(v)], "DefaultValue": v} for k, v in (parameters or {}).items()]
    return json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": found, "Steps": list(steps)})


def push(sagemaker: Any, name: str, definition: str) -> None:
    sagemaker.create_pipeline(PipelineName=name, PipelineDefinition=definition, RoleArn=ROLE)


@pytest.fixture
def execute(sagemaker: Any) -> Start:
    """Starts an execution and waits for its end."""

    def executed(name: str, **parameters: str) -> dict[str, Any]:
        given = [{"Name": key, "Value": value} for key, value in parameters.items()]
        made = sagemaker.start_pipeline_execution(PipelineName=name, PipelineParameters=given)
        return await_execution(sagemaker, made["PipelineExecutionArn"])

    return executed


def await_execution(sagemaker: Any, arn: str) -> dict[str, Any]:
    def look() -> Any:
        found = sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
        return found if found["PipelineExecutionStatus"] not in ("Executing", "Stopping") else None

    found: dict[str, Any] = wait_for(look)
    return found


def list_steps(sagemaker: Any, execution: dict[str, Any]) -> dict[str, dict[str, Any]]:
    arn = execution["PipelineExecutionArn"]
    pages = sagemaker.get_paginator("list_pipeline_execution_steps").paginate(
        PipelineExecutionArn=arn, SortOrder="Ascending"
    )
    return {step["StepName"]: step for page in pages for step in page["PipelineExecutionSteps"]}


def get_job(step: dict[str, Any]) -> str:
    name: str = step["Metadata"]["ProcessingJob"]["Arn"].rpartition("/")[2]
    return name


def test_steps_run_in_order_and_hand_on_their_outputs(sagemaker: Any, logs: Any, execute: Start) -> None:
    first = process("first", "echo $WHO > /opt/ml/processing/output/out/who")
    first["Arguments"]["Environment"] = {"WHO": {"Get": "Parameters.Who"}}
    second = process("second", "cat /opt/ml/processing/input/first/who", ("first",))
    third = process("third", DependsOn=["second"])
    push(sagemaker, "Order", write_definition(third, second, first, parameters={"Who": "nobody"}))
    execution = execute("Order", Who="me")
    assert execution["PipelineExecutionStatus"] == "Succeeded"
    assert re.fullmatch(r".*:pipeline/order/execution/[a-z0-9]{12}", execution["PipelineExecutionArn"])
    steps = list_steps(sagemaker, execution)
    assert list(steps) == ["first", "second", "third"]
    assert all(step["StepStatus"] == "Succeeded" for step in steps.values())
    assert steps["first"]["EndTime"] <= steps["second"]["StartTime"]
    name = get_job(steps["second"])
    assert re.fullmatch(r"pipelines-[a-z0-9]{12}-second-[a-z0-9]{10}", name)
    assert read_log(logs, name) == ["me"]
    tags = sagemaker.list_tags(ResourceArn=steps["second"]["Metadata"]["ProcessingJob"]["Arn"])["Tags"]
    assert {"Key": "sagemaker:pipeline-execution-arn", "Value": execution["PipelineExecutionArn"]} in tags
    listed = sagemaker.list_pipeline_executions(PipelineName="Order")["PipelineExecutionSummaries"]
    assert [item["PipelineExecutionStatus"] for item in listed] == ["Succeeded"]


def test_independent_steps_run_at_the_same_time(sagemaker: Any, execute: Start) -> None:
    push(sagemaker, "parallel", write_definition(process("one", "sleep 1"), process("two", "sleep 1")))
    one, two = list_steps(sagemaker, execute("parallel")).values()
    assert two["StartTime"] < one["EndTime"]


def make_gate(**more: Any) -> list[dict[str, Any]]:
    """A step that measures AUC, a condition on it, and a branch each way."""
    measure = process(
        "measure",
        'echo "{\\"auc\\": {\\"value\\": $AUC}}" > /opt/ml/processing/output/out/metrics.json',
        PropertyFiles=[{"PropertyFileName": "Metrics", "OutputName": "out", "FilePath": "metrics.json"}],
        arguments={"Environment": {"AUC": {"Get": "Parameters.Auc"}}},
    )
    value = {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.measure.PropertyFiles.Metrics"}, "Path": "auc.value"}}
    good = {"Type": "GreaterThanOrEqualTo", "LeftValue": value, "RightValue": {"Get": "Parameters.Least"}}
    message = join(" ", "AUC", value, "is below", {"Get": "Parameters.Least"})
    fail = {"Name": "too-low", "Type": "Fail", "Arguments": {"ErrorMessage": message}}
    arguments = {"Conditions": [good], "IfSteps": [process("register")], "ElseSteps": [fail]}
    return [measure, {"Name": "gate", "Type": "Condition", "Arguments": arguments, **more}]


def test_a_condition_takes_one_branch(sagemaker: Any, execute: Start) -> None:
    push(sagemaker, "gated", write_definition(*make_gate(), parameters={"Auc": "0.9", "Least": 0.8}))
    passed = execute("gated")
    steps = list_steps(sagemaker, passed)
    assert passed["PipelineExecutionStatus"] == "Succeeded"
    assert list(steps) == ["measure", "gate", "register"]
    assert steps["gate"]["Metadata"]["Condition"]["Outcome"] == "True"
    refused = execute("gated", Auc="0.7")
    steps = list_steps(sagemaker, refused)
    assert refused["PipelineExecutionStatus"] == "Failed"
    assert refused["FailureReason"] == "AUC 0.7 is below 0.8"
    assert list(steps) == ["measure", "gate", "too-low"]
    assert steps["too-low"]["StepStatus"] == "Failed"


@pytest.mark.parametrize("auc", ["NaN", "oops"])
def test_a_metric_that_is_no_json_never_passes(sagemaker: Any, execute: Start, auc: str) -> None:
    push(sagemaker, f"broken-{auc}", write_definition(*make_gate(), parameters={"Auc": auc, "Least": 0.8}))
    execution = execute(f"broken-{auc}")
    assert execution["PipelineExecutionStatus"] == "Failed"
    assert "not valid JSON" in list_steps(sagemaker, execution)["gate"]["FailureReason"]


def test_a_property_file_that_is_missing_fails_the_step_that_reads_it(sagemaker: Any, execute: Start) -> None:
    steps = make_gate()
    steps[0]["PropertyFiles"][0]["FilePath"] = "absent.json"
    push(sagemaker, "absent", write_definition(*steps, parameters={"Auc": "0.9", "Least": 0.8}))
    found = list_steps(sagemaker, execute("absent"))
    assert "Unable to read property file" in found["gate"]["FailureReason"]
    assert "register" not in found


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        ({"Type": "Equals", "LeftValue": 1, "RightValue": 1.0}, "True"),
        ({"Type": "Equals", "LeftValue": "a", "RightValue": "b"}, "False"),
        ({"Type": "GreaterThan", "LeftValue": 1, "RightValue": 1}, "False"),
        ({"Type": "LessThan", "LeftValue": 1, "RightValue": 2}, "True"),
        ({"Type": "LessThanOrEqualTo", "LeftValue": 2, "RightValue": 2}, "True"),
        ({"Type": "In", "QueryValue": {"Get": "Parameters.Word"}, "Values": ["b", "a"]}, "True"),
        ({"Type": "Not", "Condition": {"Type": "Equals", "LeftValue": 1, "RightValue": 1}}, "False"),
        (
            {
                "Type": "Or",
                "Conditions": [
                    {"Type": "Equals", "LeftValue": 1, "RightValue": 2},
                    {"Type": "Equals", "LeftValue": 1, "RightValue": 1},
                ],
            },
            "True",
        ),
    ],
)
def test_conditions_decide(sagemaker: Any, execute: Start, condition: dict[str, Any], outcome: str) -> None:
    name = f"decide-{abs(hash(json.dumps(condition)))}"
    step = {"Name": "c", "Type": "Condition", "Arguments": {"Conditions": [condition], "IfSteps": [], "ElseSteps": []}}
    push(sagemaker, name, write_definition(step, parameters={"Word": "a"}))
    assert list_steps(sagemaker, execute(name))["c"]["Metadata"]["Condition"]["Outcome"] == outcome


def test_a_failed_step_ends_the_execution(sagemaker: Any, execute: Start) -> None:
    push(sagemaker, "fails", write_definition(process("bad", "exit 4"), process("next", reads=("bad",))))
    execution = execute("fails")
    steps = list_steps(sagemaker, execution)
    assert execution["PipelineExecutionStatus"] == "Failed"
    assert execution["FailureReason"] == "Step failure: One or multiple steps failed."
    assert list(steps) == ["bad"]
    assert steps["bad"]["FailureReason"].endswith("exit code: 4")


def test_jobs_of_a_pipeline_pass_the_same_checks(sagemaker: Any, execute: Start) -> None:
    step = process("long", arguments={"Environment": {"K": {"Get": "Parameters.Text"}}})
    push(sagemaker, "checks", write_definition(step, parameters={"Text": "x"}))
    reason = list_steps(sagemaker, execute("checks", Text="x" * 300))["long"]["FailureReason"]
    assert reason.startswith("ClientError: Failed to invoke sagemaker:CreateProcessingJob. Error Details:")
    assert "environment.K.member" in reason


def test_a_step_that_ran_before_is_taken_from_the_cache(sagemaker: Any, logs: Any, execute: Start) -> None:
    script = "date +%N | tee /opt/ml/processing/output/out/when"
    cache = {"Enabled": True, "ExpireAfter": "P7D"}
    first = process("first", script, CacheConfig=cache, arguments={"Environment": {"K": {"Get": "Parameters.Key"}}})
    second = process("second", "cat /opt/ml/processing/input/first/when", ("first",))
    push(sagemaker, "cached", write_definition(first, second, parameters={"Key": "1"}))
    before, again, other = execute("cached"), execute("cached"), execute("cached", Key="2")
    ran, taken, ran_too = [list_steps(sagemaker, execution) for execution in (before, again, other)]
    assert "CacheHitResult" not in ran["first"]
    assert taken["first"]["CacheHitResult"]["SourcePipelineExecutionArn"] == before["PipelineExecutionArn"]
    assert get_job(taken["first"]) == get_job(ran["first"])
    assert read_log(logs, get_job(taken["second"])) == read_log(logs, get_job(ran["first"]))
    assert "CacheHitResult" not in taken["second"]
    assert "CacheHitResult" not in ran_too["first"]


@pytest.mark.soak
def test_an_expired_or_failed_step_is_not_taken_from_the_cache(sagemaker: Any, execute: Start) -> None:
    cache = {"Enabled": True, "ExpireAfter": "PT1S"}
    push(sagemaker, "expires", write_definition(process("one", CacheConfig=cache)))
    push(sagemaker, "never-good", write_definition(process("one", "exit 1", CacheConfig={"Enabled": True})))
    for name in ("expires", "never-good"):
        ended = list_steps(sagemaker, execute(name))["one"]["EndTime"]
        wait_for(partial(is_older, ended, 1))
        assert "CacheHitResult" not in list_steps(sagemaker, execute(name))["one"]


def is_older(then: datetime, age_s: float) -> bool:
    return (datetime.now(then.tzinfo) - then).total_seconds() > age_s


def test_an_execution_is_stopped_with_its_jobs(sagemaker: Any) -> None:
    push(sagemaker, "stopped", write_definition(process("slow", "sleep 600"), process("next", reads=("slow",))))
    arn = sagemaker.start_pipeline_execution(PipelineName="stopped")["PipelineExecutionArn"]

    def is_running() -> bool:
        steps = list_steps(sagemaker, {"PipelineExecutionArn": arn})
        return "ProcessingJob" in steps.get("slow", {}).get("Metadata", {})

    wait_for(is_running)
    sagemaker.stop_pipeline_execution(PipelineExecutionArn=arn)
    execution = await_execution(sagemaker, arn)
    assert execution["PipelineExecutionStatus"] == "Stopped"
    steps = list_steps(sagemaker, execution)
    assert steps["slow"]["StepStatus"] == "Stopped"
    assert "next" not in steps
    assert await_end(sagemaker, get_job(steps["slow"]))["ProcessingJobStatus"] == "Stopped"


def test_parameters_are_checked(sagemaker: Any) -> None:
    found = json.loads(write_definition(process("one"), parameters={"Number": 1, "Share": 0.5, "Flag": True}))
    found["Parameters"] += [{"Name": "Needed", "Type": "String", "EnumValues": ["a", "b"]}]
    push(sagemaker, "parameters", json.dumps(found))
    good = {"Needed": "a"}
    wrong = [{}, {"Needed": "c"}, {**good, "Unknown": "1"}, {**good, "Number": "1.5"}, {**good, "Flag": "maybe"}]
    for given in wrong:
        pairs = [{"Name": name, "Value": value} for name, value in given.items()]
        with pytest.raises(ClientError) as caught:
            sagemaker.start_pipeline_execution(PipelineName="parameters", PipelineParameters=pairs)
        assert code_of(caught) == "ValidationException"
    pairs = [{"Name": "Needed", "Value": "b"}, {"Name": "Share", "Value": "1"}]
    made = sagemaker.start_pipeline_execution(PipelineName="parameters", PipelineParameters=pairs)
    listed = sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=made["PipelineExecutionArn"])
    found = {item["Name"]: item["Value"] for item in listed["PipelineParameters"]}
    assert found == {"Number": "1", "Share": "1.0", "Flag": "true", "Needed": "b"}


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("{", "Unable to parse"),
        (write_definition(), "at least one step"),
        (write_definition(process("a"), process("a")), "unique"),
        (write_definition(process("a", DependsOn=["b"])), "not in the pipeline"),
        (write_definition(process("a", DependsOn=["b"]), process("b", reads=("a",))), "circle"),
        (write_definition(process("a", arguments={"Environment": {"K": {"Get": "Parameters.X"}}})), "parameter X"),
        (write_definition(process("a", arguments={"Environment": {"K": {"Get": "Execution.X"}}})), "variable X"),
        (write_definition(*[{**make_gate()[0], "PropertyFiles": []}, make_gate()[1]]), "does not declare|parameter"),
        (write_definition({"Name": "t", "Type": "Training", "Arguments": {}}), "Training"),
    ],
)
def test_definitions_that_cannot_run_are_refused(sagemaker: Any, definition: str, reason: str) -> None:
    with pytest.raises(ClientError, match=reason) as caught:
        push(sagemaker, "refused", definition)
    assert code_of(caught) == "ValidationException"


def test_a_pipeline_is_kept_updated_and_deleted(cloud: SmallSageMaker, sagemaker: Any, s3: Any) -> None:
    first, second = write_definition(process("one")), write_definition(process("two"))
    push(sagemaker, "kept", first)
    with pytest.raises(ClientError, match="Pipeline names must be unique within an AWS account and region"):
        push(sagemaker, "kept", first)
    started = sagemaker.start_pipeline_execution(PipelineName="kept", ClientRequestToken="t" * 32)
    arn = started["PipelineExecutionArn"]
    again = sagemaker.start_pipeline_execution(PipelineName="kept", ClientRequestToken="t" * 32)
    assert again["PipelineExecutionArn"] == arn
    put(s3, "definition.json", second)
    place = {"Bucket": BUCKET, "ObjectKey": "definition.json"}
    sagemaker.update_pipeline(PipelineName="kept", PipelineDefinitionS3Location=place)
    assert sagemaker.describe_pipeline(PipelineName="kept")["PipelineDefinition"] == second
    found = sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=arn)
    assert found["PipelineDefinition"] == first
    await_execution(sagemaker, arn)
    sagemaker.delete_pipeline(PipelineName="kept")
    with pytest.raises(ClientError) as caught:
        sagemaker.describe_pipeline(PipelineName="kept")
    assert code_of(caught) == "ResourceNotFound"
