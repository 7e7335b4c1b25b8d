"""The REST front: its templates, schema and OpenAPI file, and its function in front of a real server of a real model."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import pandas as pd
import pytest
from cloud import BUCKET, running
from iam import ACCOUNT, REGION, Request, Stack, allowing, read_template, rights
from openapi_spec_validator import validate
from small_sagemaker import SmallSageMaker
from small_sagemaker.trying import EVERYTHING
from support.commands import environment
from support.models import number, several
from support.projects import REAL_TABLE, Project, chromium
from support.rest_front import ENDPOINT, INFRA, LAMBDA, Front, called_by, front
from support.served import CSV, JSON, ROW, Client, approved, serving
from support.serving_image import ask, aws_image, of_real_table
from support.serving_image import serving as in_awss_image

import runner.model
from runner.aws.rest_stack import DESCRIPTION, MODEL
from runner.model.folder import load
from runner.model.registry import LocalRegistry
from runner.serve.openapi import openapi, outdated, record_schema

URL = "https://api.example.org/v1"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("rest"))
    approved(project)
    done = project.runner("rest", "tiny", "--url", URL, "--json")
    assert done.code == 0, done.err
    assert done.json["model"] == "tiny/1"
    return project


@pytest.fixture(scope="module")
def model(house: Project) -> runner.model.Model:
    return runner.model.load(next(house.folder.glob("runs/2*/steps/train/out/model")))


@pytest.fixture(scope="module")
def described(house: Project) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((house.folder / "build/rest/openapi.json").read_text(encoding="utf-8"))
    return made


@pytest.fixture(scope="module")
def cloud(house: Project) -> Iterator[SmallSageMaker]:
    """An endpoint in service, behind which is `runner serve`."""
    with running() as made, serving(house, "--workers", "1", "--max-body-mb", "0.01") as served:
        create_endpoint(made, ENDPOINT)
        made.serve_endpoint(ENDPOINT, f"http://127.0.0.1:{served.port}")
        yield made


def create_endpoint(cloud: SmallSageMaker, name: str) -> None:
    sagemaker = cloud.client("sagemaker")
    cloud.client("s3").put_object(Bucket=BUCKET, Key="model.tar.gz", Body=b"x")
    container = {"Image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/i", "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
    cloud.grant("jobs", EVERYTHING)  # what its machines may is the question of test_sagemaker_deploy.py
    role = f"arn:aws:iam::{ACCOUNT}:role/jobs"
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "all", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    until = time.monotonic() + 20
    while sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] != "InService":
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def asked(cloud: SmallSageMaker) -> Iterator[Front]:
    with front(cloud, LARGEST_BODY_BYTES="20000") as made:
        yield made


# Scoring


def test_a_record_is_scored_as_the_model_scores_it(asked: Front, model: runner.model.Model) -> None:
    reply = asked.ask(ROW)
    expected = float(model.predict(pd.DataFrame([ROW]))[0])
    assert reply.status == 200
    assert list(reply.json) == ["prediction", "probability", "model"]
    assert reply.json == {"prediction": expected >= 0.4, "probability": pytest.approx(expected), "model": "tiny/1"}
    line = asked.line()
    assert reply.headers["x-request-id"] == line.pop("request")
    assert line.pop("ms") > 0
    assert line == {"status": 200, "model": "tiny/1"}


@pytest.mark.soak
def test_the_real_table_scores_the_same_wherever_it_is_sent(cloud: SmallSageMaker, project: Project) -> None:
    if not REAL_TABLE.exists():
        pytest.skip(f"the real table is not at {REAL_TABLE}")
    folder = approved(project, of_real_table, name="leaving")
    lines = REAL_TABLE.read_text().splitlines(keepends=True)
    part = project.folder / "part.csv"
    part.write_text("".join([lines[0], *lines[1000:1025]]))
    frame = pd.read_csv(part)
    rows = json.loads(frame.to_json(orient="records"))
    expected = [float(one) for one in runner.model.load(folder).predict(frame)]
    assert len(set(expected)) > 20

    done = project.runner("predict", "leaving", str(part))
    predicted = [float(row["probability"]) for row in csv.DictReader(io.StringIO(done.out))]
    with serving(project, "--workers", "1", model="leaving") as served:
        client = Client(served.port)
        text = client.score(part.read_bytes(), CSV, accept=CSV).body.decode()
        records = client.score({"instances": rows}).json["predictions"]
        client.close()
        create_endpoint(cloud, "leaving-production")
        cloud.serve_endpoint("leaving-production", f"http://127.0.0.1:{served.port}")
        with front(cloud, "leaving-production") as function:
            asked_singly = [function.ask(row).json["probability"] for row in rows]
    with in_awss_image(aws_image(), folder) as container:
        _, _, packed = ask(container, part.read_bytes(), CSV, CSV)
    found = {
        "predict": predicted,
        "serve, CSV": [float(line) for line in text.splitlines()],
        "serve, JSON": [row["probability"] for row in records],
        "Lambda": asked_singly,
        "SageMaker's package": [float(line) for line in packed.splitlines()],
    }
    assert found == dict.fromkeys(found, expected)


def test_order_of_keys_and_unused_columns_do_not_matter(asked: Front) -> None:
    answers = [
        asked.ask(record).json
        for record in (ROW, dict(reversed(ROW.items())), {**ROW, "name": "Ada"}, {"instances": [{}, {}], **ROW})
    ]
    assert [asked.line()["status"] for _ in answers] == [200] * 4
    assert all(answer == answers[0] for answer in answers)


def test_base64_and_a_byte_order_mark_are_read(asked: Front) -> None:
    plain = asked.ask(ROW).json
    encoded = base64.b64encode(b"\xef\xbb\xbf" + json.dumps(ROW).encode()).decode()
    reply = asked.event(body=encoded, isBase64Encoded=True, headers={"CONTENT-TYPE": "Application/JSON; charset=utf-8"})
    assert (asked.line()["status"], asked.line()["status"]) == (200, 200)
    assert reply.json == plain


SECRET = "Ms Lovelace"


@pytest.mark.parametrize(
    ("body", "status", "said", "column"),
    [
        ({**ROW, "plan": SECRET}, 400, "Row 1, column plan: 'Ms Lovelace' is not a known category", "plan"),
        ({**ROW, "calls": SECRET}, 400, "Row 1, column calls: 'Ms Lovelace' is not a number", "calls"),
        ({"calls": 3, "plan": SECRET, "roaming": True}, 400, "Missing column in row 1: minutes.", "minutes"),
        (b'{"minutes": 1e400, "calls": 3, "plan": "gold", "roaming": true}', 400, "minutes", "minutes"),
        ({"instances": [ROW, ROW]}, 400, "Missing columns in row 1", "minutes"),
        ([ROW], 400, "The body is a list; send one record", None),
        (SECRET, 400, "The body is not an object", None),
        (b"", 400, "The body is empty", None),
        (b"{'plan': 1}", 400, "The body is not JSON", None),
        (b'{"minutes": NaN}', 400, "The body is not JSON", None),
        (b"[" * 9000, 400, "The body is not JSON", None),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, 400, "The body is not JSON", None),
        ({**ROW, "more": SECRET * 2000}, 413, "The body is larger than 20000 bytes", None),
        ({**ROW, "more": SECRET * 1000}, 413, "The record is larger than the model takes", None),
    ],
)
def test_a_record_that_cannot_be_scored_is_the_callers_fault(
    asked: Front, body: Any, status: int, said: str, column: str | None
) -> None:
    reply = asked.ask(body)
    assert (reply.status, reply.json["column"]) == (status, column)
    assert said in reply.json["error"]
    assert reply.json["request"] == reply.headers["x-request-id"]
    line = asked.line()
    assert line["status"] == status
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"httpMethod": "GET"}, 405),
        ({"headers": None}, 415),
        ({"headers": {"content-type": "text/csv"}}, 415),
        ({"headers": {"content-type": JSON, "content-encoding": "gzip"}}, 415),
        ({"body": None}, 400),
        ({"body": "~", "isBase64Encoded": True}, 400),
        ({"body": base64.b64encode(b"\xff").decode(), "isBase64Encoded": True}, 400),
        ({"body": "\ud800"}, 400),
        ({"body": "x" * 40001}, 413),
        ({"body": 5}, 500),
    ],
)
def test_odd_requests_get_their_status(asked: Front, changed: dict[str, Any], status: int) -> None:
    reply = asked.event(**changed)
    assert reply.status == status
    line = asked.line()
    assert line["status"] == status
    if status == 500:
        assert reply.json["error"] == "This is a fault of the service."
        assert "rest.py" in line["where"][-1]


@pytest.mark.parametrize(
    ("fault", "service_status", "status", "reason"),
    [
        ("ThrottlingException", 400, 503, "ThrottlingException"),
        ("ServiceUnavailable", 503, 503, "ServiceUnavailable"),
        ("InternalFailure", 500, 503, "InternalFailure"),
        ("ModelNotReadyException", 429, 503, "ModelNotReadyException"),
        ("ValidationError", 400, 503, "no-endpoint"),
        ("AccessDeniedException", 403, 500, "AccessDeniedException"),
    ],
)
def test_faults_of_the_service_are_told_as_such(
    asked: Front, cloud: SmallSageMaker, fault: str, service_status: int, status: int, reason: str
) -> None:
    text = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{ENDPOINT} says no"
    cloud.faults.add("InvokeEndpoint", fault, status=service_status, message=text)
    reply = asked.ask(ROW)
    assert reply.status == status
    assert ("retry-after" in reply.headers) == (status == 503)
    assert not any(part in json.dumps(reply.json) for part in (ACCOUNT, ENDPOINT, "arn:"))
    assert asked.line()["reason"] == reason


class Container(BaseHTTPRequestHandler):
    """Answers as it is told."""

    status, body, wait_s = 200, b"", 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.wait_s)
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def container(cloud: SmallSageMaker, status: int = 200, body: bytes = b"", wait_s: float = 0.0) -> Iterator[None]:
    """Behind the endpoint "odd"."""
    kind = type("Told", (Container,), {"status": status, "body": body, "wait_s": wait_s})
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        cloud.serve_endpoint("odd", f"http://127.0.0.1:{server.server_port}")
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def odd(cloud: SmallSageMaker) -> Iterator[Front]:
    create_endpoint(cloud, "odd")
    with front(cloud, "odd", TIMEOUT_S="0.5", ALLOW_ORIGIN="https://app.example.org") as made:
        yield made


@pytest.mark.parametrize(
    ("told", "body", "status", "said"),
    [
        (500, b"Traceback: /opt/ml/secret.py", 503, "ask again"),
        (503, b'{"error": "secret"}', 503, "ask again"),
        (429, b'{"error": "secret"}', 503, "ask again"),
        (415, b"<h1>secret</h1>", 400, "The model refuses the record."),
        (400, b"[1]", 400, "The model refuses the record."),
        (400, b'{"error": {"secret": 1}}', 400, "The model refuses the record."),
        (422, b'{"error": "No such row.", "row": "secret", "column": 3}', 400, "No such row."),
        (200, b"secret", 502, "could not be read"),
        (200, b'{"predictions": [], "model": "secret"}', 502, "could not be read"),
        (200, b'{"predictions": [{"score": 1}], "model": "secret"}', 502, "could not be read"),
    ],
)
def test_what_a_container_says_is_passed_on_only_where_it_is_for_the_caller(
    odd: Front, cloud: SmallSageMaker, told: int, body: bytes, status: int, said: str
) -> None:
    with container(cloud, told, body):
        reply = odd.ask(ROW)
    assert reply.status == status
    assert said in reply.json["error"]
    assert "secret" not in json.dumps(reply.json)
    assert odd.line()["status"] == status


@pytest.mark.soak
def test_a_model_that_is_slow_or_gone_is_told_apart(odd: Front, cloud: SmallSageMaker) -> None:
    with container(cloud, wait_s=1.5):
        began = time.monotonic()
        reply = odd.ask(ROW)
        assert time.monotonic() - began < 1.4  # asked once
    assert (reply.status, odd.line()["reason"]) == (504, "time-out")
    assert (odd.ask(ROW).status, odd.line()["reason"]) == (503, "model-0")
    with front(cloud, "nobody", AWS_ENDPOINT_URL="http://127.0.0.1:1") as alone:
        assert (alone.ask(ROW).status, alone.line()["reason"]) == (503, "EndpointConnectionError")
    with front(cloud, "nobody") as nowhere:
        assert (nowhere.ask(ROW).status, nowhere.line()["reason"]) == (503, "no-endpoint")


@pytest.mark.soak
def test_a_number_has_no_probability_and_a_class_is_a_number(cloud: SmallSageMaker, odd: Front, tmp_path: Path) -> None:
    project = Project(tmp_path)
    for name, make in (("count", number), ("class", several)):
        folder = approved(project, make, name=name)
        with serving(project, "--workers", "1", model=name) as served:
            cloud.serve_endpoint("odd", f"http://127.0.0.1:{served.port}")
            reply = odd.ask(load(folder).signature.sample_request)
            odd.line()
        version = LocalRegistry(tmp_path / "runs/registry.db").get(name, 1)
        made = openapi(load(folder).signature, version, url=URL, authentication="iam")
        validate(made)
        example = made["paths"]["/predict"]["post"]["responses"]["200"]["content"][JSON]["example"]
        assert reply.json == pytest.approx(example)
        jsonschema.validate(reply.json, made["components"]["schemas"]["Prediction"])
        assert ("probability" in reply.json) == (name == "class")


def test_pages_of_the_named_origin_may_read_answers(odd: Front, asked: Front) -> None:
    headers = odd.event(httpMethod="GET").headers
    assert headers["access-control-allow-origin"] == "https://app.example.org"
    assert headers["vary"] == "origin"
    assert "x-request-id" in headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in asked.event(httpMethod="GET").headers
    odd.line()
    asked.line()


def test_a_cold_start_imports_nothing_beside_what_lambda_has_and_makes_one_client(cloud: SmallSageMaker) -> None:
    counted = (
        "import sys; sys.path.insert(0, sys.argv[1]); made = []\n"
        "import boto3, botocore.config, botocore.exceptions, base64, json\n"
        "client = boto3.client; boto3.client = lambda *a, **k: made.append(a) or client(*a, **k)\n"
        "client('sagemaker-runtime'); before = set(sys.modules)\n"
        "import rest; print(json.dumps([sorted(set(sys.modules) - before), made]))"
    )
    env = environment({**cloud.environment, "ENDPOINT": ENDPOINT})
    said = subprocess.check_output([sys.executable, "-c", counted, str(LAMBDA)], env=env, text=True)
    assert json.loads(said) == [["rest"], [["sagemaker-runtime"]]]


# What it is told by


def test_the_schema_takes_what_the_model_takes(house: Project, model: runner.model.Model) -> None:
    schema = json.loads((house.folder / "build/rest/record.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft4Validator.check_schema(schema)
    takes = jsonschema.Draft4Validator(schema).is_valid
    good = [
        model.signature.sample_request, ROW, {**ROW, "more": [1]}, {**ROW, "calls": " 3 "}, {**ROW, "calls": "-1.5e3"},
        {**ROW, "calls": None}, {**ROW, "calls": ""}, {**ROW, "roaming": "True"}, {**ROW, "roaming": 0}, {**ROW, "plan": 657},
    ]  # fmt: skip
    for record in good:
        assert takes(record), record
        model.predict(pd.DataFrame([record]))
    bad = [
        [], [ROW], "x", {}, {k: v for k, v in ROW.items() if k != "plan"}, {**ROW, "calls": "three"},
        {**ROW, "calls": [3]}, {**ROW, "calls": True}, {**ROW, "roaming": "maybe"}, {**ROW, "plan": {"a": 1}},
    ]  # fmt: skip
    assert [record for record in bad if takes(record)] == []
    assert takes({**ROW, "plan": "unheard of"})  # the model's sentence says more


def test_the_schema_is_made_of_text_alone(model: runner.model.Model) -> None:
    def leaves(value: Any) -> Iterator[Any]:
        if isinstance(value, dict | list):
            for one in value.values() if isinstance(value, dict) else value:
                yield from leaves(one)
        else:
            yield value

    assert {type(leaf) for leaf in leaves(record_schema(model.signature))} == {str}


def test_a_deployment_finds_the_stack_by_what_its_template_says() -> None:
    resources = read_template(INFRA / "rest.yaml")["Resources"]
    assert resources["Api"]["Properties"]["Description"] == {"Fn::Sub": DESCRIPTION.format("${Endpoint}")}
    assert resources["Record"]["Properties"]["Name"] == MODEL


def test_what_of_a_schema_is_not_the_models_is_said(model: runner.model.Model) -> None:
    schema = record_schema(model.signature)
    assert outdated(schema, model.signature) == ""
    old = {
        "required": ["minutes", "plan", "roaming", "region"],
        "properties": {**schema["properties"], "plan": schema["properties"]["minutes"]},
    }
    said = "it lets calls be left out and it asks for region and it takes other values for plan"
    assert outdated(old, model.signature) == said
    assert outdated({}, model.signature).startswith("it lets minutes, calls")


def test_openapi_is_valid_and_its_examples_are_what_is_answered(asked: Front, described: dict[str, Any]) -> None:
    validate(described)
    assert described["servers"] == [{"url": URL}]
    scoring = described["paths"]["/predict"]["post"]
    sample = scoring["requestBody"]["content"][JSON]["example"]
    schemas = described["components"]["schemas"]
    jsonschema.validate(sample, schemas["Record"])
    good, bad = asked.ask(sample), asked.ask({**sample, "plan": "?"})
    jsonschema.validate(good.json, schemas["Prediction"])
    jsonschema.validate(bad.json, schemas["Error"])
    assert good.json == pytest.approx(scoring["responses"]["200"]["content"][JSON]["example"])
    assert str(bad.status) in scoring["responses"]
    assert (asked.line()["status"], asked.line()["status"]) == (200, 400)


def test_no_file_is_written_of_a_model_that_nobody_approved(tmp_path: Path) -> None:
    project = Project(tmp_path)
    approved(project, approve=False)
    done = project.runner("rest", "tiny")
    assert done.code == 8, done.err
    assert "No version of tiny is approved" in done.err
    assert not (tmp_path / "build").exists()


# The example page


def in_chromium(tmp_path: Path, url: str, *options: str) -> str:
    return subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}", *options, url],
        capture_output=True, text=True, check=True, timeout=90,
    ).stdout  # fmt: skip


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """The folder over HTTP, as a web server has it."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().partition("(")[2].partition("/)")[0]
        try:
            yield address
        finally:
            server.terminate()


@pytest.mark.soak
def test_the_example_page_scores_a_record_from_another_origin(
    house: Project, cloud: SmallSageMaker, tmp_path: Path
) -> None:
    shutil.copytree(house.folder / "build", tmp_path / "site/build")
    (tmp_path / "site/infra").mkdir()
    shutil.copyfile(INFRA / "example.html", tmp_path / "site/infra/example.html")
    with pages(tmp_path / "site") as site, front(cloud, ALLOW_ORIGIN=site) as api:
        page = in_chromium(tmp_path, f"{site}/infra/example.html?try=1&url={api.url}", "--dump-dom")
        assert "tiny/1. Request" in page
        assert "Probability" in page
        assert api.line()["status"] == 200
    with pages(tmp_path / "site") as site, front(cloud) as api:
        page = in_chromium(tmp_path, f"{site}/infra/example.html?try=1&url={api.url}", "--dump-dom")
        assert "does not let this page call it" in page


def test_the_page_of_a_server_scores_its_form_where_a_token_is_in_the_address(house: Project, tmp_path: Path) -> None:
    with serving(house, "--workers", "1", RUNNER_TOKEN="s3cret") as served:
        page = in_chromium(tmp_path, f"http://anyone:s3cret@127.0.0.1:{served.port}/#scored", "--dump-dom")
        client = Client(served.port)
        sample = client.ask("GET", "/openapi.json", authorization="Bearer s3cret").json
        record = sample["components"]["schemas"]["Record"]["example"]
        said = client.score(record, authorization="Bearer s3cret").json["predictions"][0]
        client.close()
    scored = [line["status"] for line in served.log if line["path"] == "/invocations"]
    result = page.partition('<output id="result"')[2].partition("</output>")[0]
    assert f"{'Yes' if said['prediction'] else 'No'}, probability {said['probability']:.3g}" in result, result
    assert "tiny/1 answered in" in result
    assert scored == [200, 200]


# The templates


def test_the_function_may_invoke_one_endpoint_and_write_its_log_and_nothing_else() -> None:
    granted = rights("rest.yaml", "FunctionRole", Project="tiny", Endpoint=ENDPOINT)
    at = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint"
    logs = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda"
    assert allowing(granted, Request("sagemaker:InvokeEndpoint", f"{at}/{ENDPOINT}"))
    assert allowing(granted, Request("logs:PutLogEvents", f"{logs}/tiny-rest:log-stream:a"))
    for action, resource in (
        ("sagemaker:InvokeEndpoint", f"{at}/{ENDPOINT}-2"),
        ("sagemaker:InvokeEndpointAsync", f"{at}/{ENDPOINT}"),
        ("logs:PutLogEvents", f"{logs}/tiny-rest-2:log-stream:a"),
        ("s3:GetObject", f"arn:aws:s3:::{BUCKET}/model"),
    ):
        assert not allowing(granted, Request(action, resource))


def test_nobody_gets_in_without_a_key_or_a_signature() -> None:
    for authentication, kind, needs_key in (("api-key", "NONE", True), ("iam", "AWS_IAM", False)):
        stack = Stack(INFRA / "rest.yaml", Endpoint=ENDPOINT, Authentication=authentication)
        predict = stack.render(stack.template["Resources"]["Predict"]["Properties"])
        assert (predict["AuthorizationType"], predict["ApiKeyRequired"]) == (kind, needs_key)
        assert stack.holds({"Condition": "IsKey"}) == needs_key
    settings = read_template(INFRA / "rest.yaml")["Resources"]["Function"]["Properties"]
    assert settings["Handler"] == "rest.handler"
    assert (INFRA / settings["Code"] / "rest.py").exists()


def test_the_api_is_released_with_what_answers_browsers() -> None:
    """CloudFormation goes by references: without one the preflight's method may be made after the release."""
    released = read_template(INFRA / "rest.yaml")["Resources"]["Deployment"]
    for origin, there in (("https://app.example.org", True), ("", False)):
        stack = Stack(INFRA / "rest.yaml", Endpoint=ENDPOINT, AllowOrigin=origin)
        assert stack.holds(stack.template["Resources"]["Preflight"]) == there
    assert released["Metadata"]["Preflight"] == {"Fn::If": ["HasOrigin", {"Ref": "Preflight"}, ""]}


def test_the_smoke_test_passes_a_good_endpoint_and_tells_what_is_wrong_with_others(
    cloud: SmallSageMaker, house: Project, odd: Front
) -> None:
    def smoke(endpoint: str, label: str = "tiny/1") -> subprocess.CompletedProcess[str]:
        file = house.folder / "build/rest/openapi.json"
        command = [sys.executable, str(LAMBDA / "smoke.py"), endpoint, label, str(file)]
        env = environment(called_by(cloud, endpoint, "deploy-build"))
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    good = smoke(ENDPOINT)
    assert (good.returncode, good.stderr) == (0, f"{ENDPOINT} serves tiny/1 as it should\n")
    other = smoke(ENDPOINT, "tiny/2")
    assert other.returncode == 1
    assert "tiny/1 answers instead of tiny/2" in other.stderr
    with container(cloud, body=b'{"predictions": [{"prediction": true, "probability": 0.5}], "model": "tiny/1"}'):
        constant = smoke("odd")
    assert constant.returncode == 1
    assert "instead of {'prediction'" in constant.stderr
    assert "a record that lacks a column: status 200 instead of 400" in constant.stderr
