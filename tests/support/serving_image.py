"""AWS's serving image with a model's archive in it, and what is asked of it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import xgboost as xgb
from small_sagemaker.container import check_permitted
from small_sagemaker.images import Image
from small_sagemaker.serving import ServingContainer, xgboost_image

import runner.model
from runner.aws.package import ENVIRONMENT, package
from runner.content import artifact
from support.projects import REAL_TABLE, ROOT


def aws_image() -> Image:
    """Skips, saying why, where this machine cannot run it."""
    made = xgboost_image()
    check_permitted([made])
    return made


@contextmanager
def serving(image: Image, folder: Path, **told: str) -> Iterator[ServingContainer]:
    """The folder as it is deployed."""
    sha256 = artifact(folder, name="model").sha256
    made = ServingContainer(image, package(folder).archive, {**ENVIRONMENT, "RUNNER_SHA256": sha256, **told})
    try:
        yield made
    finally:
        made.close()


def ask(
    container: ServingContainer, body: str | bytes, kind: str = "text/csv", accept: str = "*/*", **more: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    made = http.client.HTTPConnection(container.url.removeprefix("http://"), timeout=60)
    try:
        content = body.encode() if isinstance(body, str) else body
        made.request("POST", "/invocations", content, {"Content-Type": kind, "Accept": accept, **more})
        reply = made.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        made.close()


def status_of(container: ServingContainer, head: str) -> int:
    """Of an answer to what is sent as it stands."""
    place, _, port = container.url.removeprefix("http://").partition(":")
    with socket.create_connection((place, int(port)), timeout=60) as client:
        client.sendall(head.replace("\n", "\r\n").encode())
        return int(client.makefile("rb").readline().split()[1])


def documented() -> set[int]:
    """The statuses of docs/serving.md that come from an endpoint's container."""
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    table = text.split("| status | when | at an endpoint |")[1].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    assert len(rows) == 9
    return {int(one) for codes, _, there in rows if there.strip() == "the same" for one in codes.split(",")}


def of_real_table(folder: Path) -> Path:
    frame = pd.read_csv(REAL_TABLE)
    raw = frame.drop(columns=["Churn?", "Phone"])
    for name in ("State", "Area Code", "Int'l Plan", "VMail Plan"):
        raw[name] = runner.model.as_category(raw[name]).astype("category")
    data = xgb.DMatrix(raw, frame["Churn?"] == "True.", enable_categorical=True)
    booster = xgb.train({"objective": "binary:logistic"}, data, 30)
    runner.model.save(folder, booster, raw, target="Churn?", positive="True.")
    return folder
