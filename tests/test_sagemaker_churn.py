"""The shipped notebooks as processing jobs: the table becomes a model package that waits for somebody's approval."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud import BUCKET, SAGEMAKER, RemoteProject, running
from small_sagemaker import NotPermittedError, SmallSageMaker, distribution_image
from support.commands import Done
from support.projects import PAGES, REAL_TABLE, ROOT

STEPS = ["data", "train", "evaluate", "register"]


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


def checkout(folder: Path, cloud: SmallSageMaker, settings: str = SAGEMAKER) -> RemoteProject:
    """The project as it is cloned, with its registry and its jobs in SageMaker."""
    project = RemoteProject(folder, cloud, settings)
    skip = shutil.ignore_patterns("work", ".ipynb_checkpoints", "__pycache__")
    for name in ("notebooks", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    pipeline = (ROOT / "pipeline.toml").read_text()
    assert 'registry = "local"' in pipeline
    project.toml(pipeline.replace('registry = "local"', 'registry = "sagemaker"', 1))
    return project


def table() -> Path:
    if not REAL_TABLE.exists():
        pytest.skip(f"the real table is not at {REAL_TABLE}")
    return REAL_TABLE


def ended(project: RemoteProject, *arguments: str) -> Done:
    done = project.runner("run", "--on", "sagemaker", "--json", *arguments, env=PAGES)
    assert done.code == 0, done.err
    return done


@pytest.mark.soak
def test_the_real_table_becomes_a_model_package_that_is_approved_and_challenged(
    cloud: SmallSageMaker, tmp_path: Path
) -> None:
    project = checkout(tmp_path, cloud)
    made = ended(project, "-p", f"data.source={table()}").json
    assert [(step["name"], step["status"]) for step in made["steps"]] == [(name, "succeeded") for name in STEPS]
    assert made["model_version"] == {"name": "churn", "version": 1, "status": "pending"}
    assert made["metrics"]["evaluate.auc"]["value"] > 0.97
    assert "SageMaker" in Path(made["report"]).read_text()
    sagemaker = cloud.client("sagemaker")
    (package,) = sagemaker.list_model_packages(ModelPackageGroupName="churn")["ModelPackageSummaryList"]
    assert package["ModelApprovalStatus"] == "PendingManualApproval"
    # the same numbers as here
    local = project.runner("run", "--json", "-p", f"data.source={table()}", "--no-register")
    assert local.code == 0, local.err
    assert local.json["metrics"] == made["metrics"]
    assert local.json["verdict"] == made["verdict"]
    assert project.runner("verify", "churn/1").code == 0
    assert project.runner("approve", "churn/1", "--reason", "reviewed").code == 0
    challenged = ended(project, "-p", f"data.source={table()}", "-p", "seed=43").json
    assert challenged["steps"][2]["status"] == "succeeded"  # against the champion, so not the earlier one's result
    assert "evaluate.auc_gain" in challenged["metrics"]
    history = project.runner("history", "churn", "--json").json
    assert [event["kind"] for event in history][:2] == ["registered", "approved"]


@pytest.mark.soak
def test_the_packages_of_the_lock_come_with_the_job_where_the_image_has_others(tmp_path: Path) -> None:
    try:
        image = distribution_image()
    except NotPermittedError as error:
        pytest.skip(str(error))
    with running(image) as cloud:
        settings = SAGEMAKER.replace('packages = "image"', 'packages = "lock"').replace('"3.11"', '"3.12"')
        project = checkout(tmp_path, cloud, settings)
        s3 = cloud.client("s3")
        s3.upload_file(str(table()), BUCKET, "team/data/churn.txt")
        made = ended(project, "-p", f"data.source=s3://{BUCKET}/team/data/churn.txt").json
        assert made["model_version"]["status"] == "pending"
        manifest = json.loads((project.runs[-1] / "run.json").read_text())
        for step in manifest["steps"]:
            job = step["result"]["remote"]
            assert job["environment"] == "lock"
            assert job["python"].startswith("3.12.")
            assert (job["packages"]["xgboost-cpu"], job["packages"]["scrapbook"]) == ("3.2.0", "0.5.0")
