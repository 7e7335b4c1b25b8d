"""`inference.py` in SageMaker's container: the same file, found by its four functions, without anything of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xgboost as xgb
from conftest import REAL_TABLE, ROOT, environment
from test_serve_records import computed, records, saved, trained

import runner.model
from runner.content import artifact
from runner.serve.inference import BadInput, input_fn, model_fn, output_fn, predict_fn

# What the container's own server does with a script, in words of its own:
# https://github.com/aws/sagemaker-xgboost-container/blob/master/src/sagemaker_xgboost_container/serving.py
CONTAINER = """
import importlib.util, json, sys
for name in ("runner", "msgspec", "starlette", "uvicorn"):  # which are not in the image
    sys.modules[name] = None
folder, requests = sys.argv[1], json.load(sys.stdin)
spec = importlib.util.spec_from_file_location("inference", folder + "/code/inference.py")
module = importlib.util.module_from_spec(spec)
sys.modules["inference"] = module
spec.loader.exec_module(module)
model = module.model_fn(folder)
for body, kind, accept in requests:
    content = body if kind in ("application/json", "text/csv") else body.encode()  # text comes as str there
    body, kind = module.output_fn(module.predict_fn(module.input_fn(content, kind), model), accept)
    print(json.dumps([body.decode(), kind]))
"""
WEB = """
import sys
import werkzeug.exceptions, werkzeug.wrappers
from flask import Flask, request
sys.path.insert(0, sys.argv[1] + "/code")
import inference
app, model = Flask("container"), inference.model_fn(sys.argv[1])

@app.route("/invocations", methods=["POST"])
def invocations():
    made = inference.predict_fn(inference.input_fn(request.get_data(), request.content_type), model)
    body, kind = inference.output_fn(made, request.headers.get("accept", "*/*"))
    return werkzeug.wrappers.Response(body, mimetype=kind)

client = app.test_client()
for body, kind, accept in [(b"1,2,gold,1", "text/csv", "text/csv"), (b"1,2,iron,1", "text/csv", "*/*"),
                           (b"x", "image/png", "*/*"), (b"1,2,gold,1", "text/csv", "image/png")]:
    answer = client.post("/invocations", data=body, headers={"content-type": kind, "accept": accept})
    print(answer.status_code, answer.mimetype, answer.get_data(as_text=True).strip())
"""


def package(folder: Path) -> Path:
    """The model folder as it lies in the container: `inference.py` in `code/`."""
    (folder / "code").mkdir()
    shutil.copyfile(ROOT / "runner/serve/inference.py", folder / "code/inference.py")
    return folder


def run(folder: Path, requests: list[tuple[str, str, str]], **more: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", CONTAINER, str(folder)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment(), **more},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_real_table(folder: Path) -> tuple[Path, pd.DataFrame]:
    frame = pd.read_csv(REAL_TABLE)
    raw = frame.drop(columns=["Churn?", "Phone"])
    for name in ("State", "Area Code", "Int'l Plan", "VMail Plan"):
        raw[name] = runner.model.as_category(raw[name]).astype("category")
    data = xgb.DMatrix(raw, frame["Churn?"] == "True.", enable_categorical=True)
    runner.model.save(
        folder, xgb.train({"objective": "binary:logistic"}, data, 30), raw, target="Churn?", positive="True."
    )
    return folder, frame


@pytest.mark.skipif(not REAL_TABLE.exists(), reason="the real table is not beside this checkout")
def test_the_container_scores_a_real_table_to_the_bit(tmp_path: Path) -> None:
    folder, frame = of_real_table(tmp_path / "model")
    expected = runner.model.load(folder).predict(frame)
    table, rows = REAL_TABLE.read_text(), frame.to_json(orient="records")
    answers = run(
        package(folder),
        [(table, "text/csv", "text/csv"), (rows, "application/json", "application/json")],
        RUNNER_MODEL="leaving/3",
    )
    assert answers[0][1] == "text/csv; charset=utf-8"
    assert [float(line) for line in answers[0][0].splitlines()] == expected.tolist()
    said = json.loads(answers[1][0])
    assert said["model"] == "leaving/3"
    assert [row["probability"] for row in said["predictions"]] == expected.tolist()
    assert [row["prediction"] for row in said["predictions"]] == (expected >= 0.5).tolist()


@pytest.mark.parametrize("make", [saved, computed])
def test_the_container_takes_what_serve_takes(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "model")
    raw = records(30)
    expected = runner.model.load(folder).predict(raw).tolist()
    lines = "\n".join(json.dumps(row) for row in json.loads(raw.to_json(orient="records")))
    instances = json.dumps({"instances": json.loads(raw.to_json(orient="values"))})
    answers = run(
        package(folder),
        [(lines, "application/jsonlines", "application/jsonlines"), (instances, "application/json", "*/*")],
    )
    assert [json.loads(line)["probability"] for line in answers[0][0].splitlines()] == expected
    assert [row["probability"] for row in json.loads(answers[1][0])["predictions"]] == expected


def test_the_container_can_take_unknown_categories_for_missing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    expected = runner.model.load(folder).predict(pd.DataFrame([[1, 2, None, True]], columns=records().columns))
    answers = run(package(folder), [("1,2,iron,1", "text/csv", "text/csv")], RUNNER_UNKNOWN="missing")
    assert [float(answers[0][0])] == expected.tolist()


def test_a_refusal_is_no_fault_of_the_containers_server(tmp_path: Path) -> None:
    """Flask answers any other error with 500, without a word."""
    done = subprocess.run(
        [sys.executable, "-c", WEB, str(package(saved(tmp_path / "model")))],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["200", "text/csv"],
        ["400", "application/json"],
        ["415", "application/json"],
        ["406", "application/json"],
    ], done.stderr
    assert json.loads(lines[1].split(maxsplit=2)[2])["column"] == "plan"


def test_the_four_functions_work_where_no_web_framework_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "werkzeug", raising=False)  # as other tests may have left it
    model = model_fn(str(saved(tmp_path / "model")))
    body, kind = output_fn(predict_fn(input_fn(bytearray(b"1,2,gold,1"), "text/csv"), model), "application/json")
    assert json.loads(body)["model"] == os.environ.get("RUNNER_MODEL", "")
    assert kind == "application/json"
    with pytest.raises(BadInput, match="'iron' is not a known category"):
        predict_fn(input_fn("1,2,iron,1", "text/csv"), model)


def test_a_container_whose_model_fails_its_self_test_does_not_start(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    path = folder / "signature.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_prediction": 0.5}))
    with pytest.raises(ValueError, match=r"The sample record scores 0\.\d+; 0\.5 is recorded"):
        model_fn(str(folder))


@pytest.mark.parametrize("change", ["none", "byte", "more", "deeper"])
def test_a_model_that_is_not_the_one_deployed_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """As where the archive was swapped after the deployment, and an instance more is needed."""
    folder = saved(tmp_path / "model")
    monkeypatch.setenv("RUNNER_SHA256", artifact(folder, name="elsewhere/model").sha256)
    package(folder)  # whose script is not the model's
    if change == "none":
        assert model_fn(str(folder)).names == list(records().columns)
        return
    if change == "byte":
        trained(records(), seed=2, max_depth=1).save_model(folder / "model.ubj")
    else:
        place = folder / "deeper" if change == "deeper" else folder
        place.mkdir(exist_ok=True)
        (place / "more.txt").write_text("x")
    with pytest.raises(ValueError, match=r"The model was altered: its hash is [0-9a-f]{12}, deployed was [0-9a-f]{12}"):
        model_fn(str(folder))
