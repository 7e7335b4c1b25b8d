"""A model's archive in AWS's serving image: the same lines that score here, behind nginx, gunicorn and its Transformer."""

from __future__ import annotations

import io
import json
import shutil
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pandas as pd
import pytest
from small_sagemaker.images import Image
from small_sagemaker.serving import ServingContainer
from support.models import records, saved, trained
from support.projects import REAL_TABLE, ROOT
from support.serving_image import ask, aws_image, documented, of_real_table, serving, status_of

import runner.model
from runner.aws.package import ENVIRONMENT, INSIDE, check_package, package
from runner.content import artifact
from runner.errors import UsageError
from runner.scoring.inference import model_fn, transform_fn

# text as pandas 2.2 and 3 treat alike, in several ways of writing
FEATURES = """
import pandas as pd


def transform(frame):
    joined = pd.to_datetime(frame["joined"], errors="coerce")
    name = frame["name"].str.strip().str.lower()
    return pd.DataFrame(
        {
            "year": joined.dt.year,
            "long": name.str.len(),
            "rate": (frame["calls"] / (frame["minutes"].fillna(0) + 1)).round(3),
            "kind": name.str[0],
            "plan": frame["plan"],
            "both": frame["plan"].astype("object").fillna("none") + "/" + frame["roaming"].astype(float).map({1.0: "y", 0.0: "n"}),
        }
    )
"""
DIFFERENT = """
import pandas as pd


def transform(frame):
    return pd.DataFrame({"calls": frame["calls"], "long": frame["plan"].astype(str).str.len()})  # of a gap: 3, or none
"""


@pytest.fixture(scope="module")
def image() -> Image:
    return aws_image()


@pytest.fixture(scope="module")
def plain(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingContainer]:
    """A model without code, from the start of its container to the first 200 without a network."""
    with serving(image, saved(tmp_path_factory.mktemp("plain") / "model"), RUNNER_MODEL="leaving/3") as made:
        yield made


@pytest.mark.soak
def test_every_refusal_has_its_own_status_through_awss_servers(plain: ServingContainer) -> None:
    record = json.dumps({"minutes": 1, "calls": 2, "plan": "gold", "roaming": True})
    asked: list[tuple[int, str | None, Any]] = [
        (200, None, ask(plain, "1,2,gold,1")),
        (400, "plan", ask(plain, "1,2,iron,1")),
        (400, "minutes", ask(plain, "x,2,gold,1")),
        (400, "plan", ask(plain, json.dumps([{"minutes": 1, "calls": 2, "roaming": True}]), "application/json")),
        (400, None, ask(plain, "1,2,gold")),
        (400, None, ask(plain, '{"instances": ', "application/json")),
        (400, None, ask(plain, f"{record}\n{{", "application/jsonlines")),
        (400, None, ask(plain, b"1,2,\xff,1")),  # which AWS's server reads as U+FFFD
        (400, None, ask(plain, b'[{"more": "\xff"}]', "application/json")),
        (400, None, ask(plain, "")),
        (406, None, ask(plain, "1,2,gold,1", accept="image/png")),
        (415, None, ask(plain, "1,2,gold,1", "image/png")),
        (415, None, ask(plain, "1,2,gold,1", **{"Content-Encoding": "gzip"})),
    ]
    for status, column, (found, headers, body) in asked:
        assert (found, headers["x-model"]) == (status, "leaving/3"), body
        said = json.loads(body)
        assert status == 200 or (headers["Content-Type"], said["column"]) == ("application/json", column), said
        assert status == 200 or said["error"]
    others = {
        400: status_of(plain, "this is not HTTP\n\n"),
        404: status_of(plain, "GET /metrics HTTP/1.1\nHost: x\n\n"),
        405: status_of(plain, "GET /invocations HTTP/1.1\nHost: x\n\n"),
    }
    assert list(others) == list(others.values())
    assert documented() == {status for status, *_ in asked if status != 200} | set(others)


@pytest.mark.soak
def test_a_body_that_does_not_arrive_ends_the_connection_within_awss_minute(plain: ServingContainer) -> None:
    place, _, port = plain.url.removeprefix("http://").partition(":")
    with socket.create_connection((place, int(port)), timeout=90) as client:
        client.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 99\r\n\r\n1,"
        )
        assert client.recv(100) == b""


def test_a_container_takes_what_serve_takes_and_scores_it_to_the_bit(plain: ServingContainer, tmp_path: Path) -> None:
    raw = records(30)
    expected = runner.model.load(saved(tmp_path / "model")).predict(raw).tolist()
    rows = json.loads(raw.to_json(orient="records"))
    lines = "\n".join(map(json.dumps, rows))
    instances = json.dumps({"instances": json.loads(raw.to_json(orient="values"))})
    status, headers, body = ask(plain, lines, "application/jsonlines", "application/jsonlines")
    assert (status, headers["Content-Type"]) == (200, "application/jsonlines")
    assert [json.loads(line)["probability"] for line in body.splitlines()] == expected
    status, _, body = ask(plain, instances, "application/json")
    assert (status, json.loads(body)["model"]) == (200, "leaving/3")
    assert [row["probability"] for row in json.loads(body)["predictions"]] == expected
    status, headers, body = ask(plain, raw.to_csv(index=False), "text/csv; header=present", "text/csv")
    assert headers["Content-Type"] == "text/csv; charset=utf-8"
    assert [float(line) for line in body.splitlines()] == expected


@pytest.mark.soak
def test_a_model_with_features_scores_the_same_bits_with_the_containers_pandas(image: Image, tmp_path: Path) -> None:
    raw = records(150)
    days = pd.date_range("2019-11-03", periods=len(raw), freq="17D").strftime("%Y-%m-%d").to_series(index=raw.index)
    raw["joined"] = days.where(raw.index % 11 != 3)
    raw["name"] = pd.Series([" Ada", "süd ", "Bo", None, "Ümit"] * 30, index=raw.index)
    (tmp_path / "features.py").write_text(FEATURES, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(FEATURES, scope)
    made = scope["transform"](raw)
    features = made.astype(dict.fromkeys(("kind", "both"), "category"))
    folder = tmp_path / "model"
    runner.model.save(folder, trained(features), raw, target="left", positive="yes", code=tmp_path / "features.py")
    expected = runner.model.load(folder).predict(raw).tolist()
    assert len(set(expected)) > 20
    with serving(image, folder) as container:
        status, _, body = ask(container, raw.to_json(orient="records"), "application/json", "text/csv")
        assert status == 200, body
        assert [float(line) for line in body.splitlines()] == expected
        status, _, body = ask(container, raw.to_csv(index=False), "text/csv", "text/csv")
        assert [float(line) for line in body.splitlines()] == expected


def test_features_that_the_containers_pandas_makes_otherwise_are_refused_when_saved(tmp_path: Path) -> None:
    raw = records()
    (tmp_path / "features.py").write_text(DIFFERENT)
    scope: dict[str, Any] = {}
    exec(DIFFERENT, scope)
    booster = trained(scope["transform"](raw), raw["plan"].isna())
    with pytest.raises(UsageError, match=r"Row 9 of the frame scores .* here and .* with pandas 2\.2"):
        runner.model.save(tmp_path / "model", booster, raw, target="left", code=tmp_path / "features.py")
    assert not (tmp_path / "model").exists()


@pytest.mark.soak
@pytest.mark.skipif(not REAL_TABLE.exists(), reason="the real table is not beside this checkout")
def test_the_container_scores_a_real_table_to_the_bit(image: Image, tmp_path: Path) -> None:
    folder = of_real_table(tmp_path / "model")
    frame = pd.read_csv(REAL_TABLE)
    expected = runner.model.load(folder).predict(frame)
    with serving(image, folder) as container:
        _, _, body = ask(container, REAL_TABLE.read_bytes(), "text/csv", "text/csv")
        assert [float(line) for line in body.splitlines()] == expected.tolist()
        _, _, body = ask(container, frame.to_json(orient="records"), "application/json")
    said = json.loads(body)["predictions"]
    assert [row["probability"] for row in said] == expected.tolist()
    assert [row["prediction"] for row in said] == (expected >= 0.5).tolist()


@pytest.mark.soak
def test_a_container_with_an_altered_model_does_not_come_up(image: Image, tmp_path: Path) -> None:
    made = package(saved(tmp_path / "model"))
    with pytest.raises(RuntimeError, match="The model was altered: its hash is"):
        ServingContainer(image, made.archive, {**ENVIRONMENT, "RUNNER_SHA256": "00" * 32})


@pytest.mark.soak
def test_a_container_whose_code_has_no_build_backend_asks_for_an_index_and_does_not_come_up(
    image: Image, tmp_path: Path
) -> None:
    made, bare = package(saved(tmp_path / "model")), io.BytesIO()
    with tarfile.open(fileobj=bare, mode="w:gz") as archive:
        for name, content in check_package(made.archive, made.sha256).items():
            if not name.startswith("code/") or name == INSIDE:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with pytest.raises(RuntimeError, match="setuptools"):
        ServingContainer(image, bare.getvalue(), ENVIRONMENT)


def test_a_container_can_take_unknown_categories_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model")
    monkeypatch.setenv("RUNNER_UNKNOWN", "missing")
    expected = runner.model.load(folder).predict(pd.DataFrame([[1, 2, None, True]], columns=records().columns))
    body = b"1,2,iron,1"
    with flask.Flask("container").test_request_context(method="POST", data=body):
        answer = transform_fn(model_fn(str(folder)), body, "text/csv", "text/csv")
    assert [float(answer.get_data())] == expected.tolist()


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
    (folder / "code").mkdir()
    shutil.copyfile(ROOT / "runner/scoring/inference.py", folder / INSIDE)  # which is not the model's
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
