"""What of a version goes to SageMaker: the archive that an endpoint unpacks, and its metrics as Studio shows them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from pathlib import Path

import pytest
from support.archives import bomb, header
from support.projects import ROOT
from support.registries import folder_of, new

from runner.aws.evaluation import evaluation
from runner.aws.package import INSIDE, check_package, code, package, serving_image
from runner.content import artifact
from runner.errors import Refused, Tampered, UsageError
from runner.records import Metric


def test_equal_folders_give_equal_archives_that_hold_the_model_and_the_script(tmp_path: Path) -> None:
    first, second = (folder_of(new(1), tmp_path / name) for name in ("a", "b"))
    time.sleep(0.01)
    for path in sorted(second.iterdir(), reverse=True):  # made anew, in another order, at another time
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o600)
    made = package(first)
    assert made == package(second)
    assert made.folder_sha256 == artifact(first, name="model").sha256
    assert made.archive[4:8] == bytes(4)  # gzip's time
    files = check_package(made.archive, made.sha256)
    assert list(files) == sorted(["model.json", "signature.json", *code()])
    assert files == {**made.files, **code()}
    assert files[INSIDE] == (ROOT / "runner/scoring/inference.py").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(made.archive)) as archive:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in archive} == {(0, 0, 0, "")}


def test_a_folder_that_could_run_code_or_shadows_the_script_is_refused(tmp_path: Path) -> None:
    folder = folder_of(new(1), tmp_path)
    (folder / "encoder.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(Refused, match=r"encoder\.bin is a pickle"):
        package(folder)
    (folder / "encoder.bin").unlink()
    (folder / "features.py").write_text("def transform(frame):\n    return frame\n")
    assert "features.py" in check_package(package(folder).archive, package(folder).sha256)
    (folder / "code").mkdir()
    (folder / INSIDE).write_text("")
    with pytest.raises(UsageError, match="where the endpoint's own script goes"):
        package(folder)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("../outside", tarfile.REGTYPE, "cannot be unpacked"),
        ("/etc/passwd", tarfile.SYMTYPE, "no file|cannot be unpacked"),
        ("link", tarfile.LNKTYPE, "no file|cannot be unpacked"),
        ("pipe", tarfile.FIFOTYPE, "no file|cannot be unpacked"),
        ("model.json", tarfile.REGTYPE, "there twice"),
        ("bad.pkl", tarfile.REGTYPE, "is a pickle"),
    ],
)
def test_an_archive_that_is_not_what_was_registered_is_not_deployed(name: str, kind: bytes, said: str) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for member in (tarfile.TarInfo("model.json"), tarfile.TarInfo(INSIDE), tarfile.TarInfo(name)):
            member.type = kind if member.name == name else tarfile.REGTYPE
            member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = 2 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"{}") if member.isreg() else None)
    data = made.getvalue()
    with pytest.raises(Tampered, match="It was altered"):
        check_package(data, "00" * 32)
    with pytest.raises(Refused, match=said):
        check_package(data, hashlib.sha256(data).hexdigest())


def test_an_archive_that_needs_a_package_index_is_not_deployed_and_goes_on_where_it_runs() -> None:
    files = {"model.json": b"{}", "signature.json": b"{}", INSIDE: b"{}"}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:  # as releases before wheel_backend.py made it
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    data = content.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    with pytest.raises(
        Refused, match=r"no code/pyproject\.toml, .*need a package index to start.*`runner run --force`"
    ):
        check_package(data, sha256)
    assert check_package(data, sha256, running=True) == files


@pytest.mark.soak
def test_an_archive_that_unpacks_to_gigabytes_is_not_deployed(tmp_path: Path) -> None:
    for beginning in (header("././@LongLink", 3 << 30, tarfile.GNUTYPE_LONGNAME), header("model.json", 3 << 30)):
        data = bomb(tmp_path / "model.tar.gz", beginning, mebibytes=3072).read_bytes()
        with pytest.raises(Tampered, match="cannot be unpacked"):
            check_package(data, hashlib.sha256(data).hexdigest())


def test_metrics_take_the_form_that_studio_shows() -> None:
    metrics = {
        "evaluate.auc": Metric(value=0.875, low=0.84, high=0.91, better="higher"),
        "evaluate.accuracy": Metric(value=0.9),
        "train.rounds": Metric(value=5.0),
        "evaluate.rounds": Metric(value=6.0),
    }
    report = json.loads(evaluation(metrics))["binary_classification_metrics"]
    assert report["auc"] == {"value": 0.875, "standard_deviation": pytest.approx(0.07 / (2 * 1.959964))}
    assert report["accuracy"] == {"value": 0.9, "standard_deviation": "NaN"}
    assert (report["train.rounds"]["value"], report["evaluate.rounds"]["value"]) == (5.0, 6.0)
    assert list(json.loads(evaluation(metrics, objective="reg:squarederror"))) == ["regression_metrics"]
    assert evaluation(metrics) == evaluation(dict(reversed(metrics.items())))


def test_the_serving_image_is_the_region_s_or_the_chosen_one() -> None:
    known = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-xgboost:3.2-0"
    assert serving_image("us-east-1") == known
    assert serving_image("mars-1", "own:1") == "own:1"
    with pytest.raises(UsageError, match=r"mars-1.*serving_image ="):
        serving_image("mars-1")
