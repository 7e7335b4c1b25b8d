"""Models of three kinds behind every door: commands, HTTP, an endpoint's container; and as each other's champion."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_sagemaker.container import check_permitted
from small_sagemaker.errors import NotPermittedError
from small_sagemaker.serving import ServingContainer, runner_image
from support.kinds import FILES, records, saving
from support.projects import ROOT, Project, parameters
from support.served import CSV, JSON, Client, approved, serving
from support.serving_image import ask
from support.some import some

import runner.model
from runner.aws.package import ENVIRONMENT, check_image, package, serving_image
from runner.content import artifact
from runner.errors import UsageError
from runner.pipeline.plan import plan

BODY = records().iloc[:40].to_csv(index=False)
ROWS = json.loads(records().iloc[:40].to_json(orient="records"))


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Project]:
    """An approved version of each kind, of two classes and of three."""
    made = {}
    for kind in FILES:
        for question in ("binary", "several"):
            made[kind, question] = Project(tmp_path_factory.mktemp(f"{kind}-{question}"))
            approved(made[kind, question], saving(kind, question))
    return made


def wanted(project: Project) -> np.ndarray:
    (folder,) = project.folder.glob("runs/2*/steps/train/out/model")
    return runner.model.load(folder).predict(records().iloc[:40])


def floats(text: str) -> np.ndarray:
    return np.array([[float(one) for one in line.split(",")] for line in text.splitlines()], dtype="float32").squeeze()


@pytest.mark.cases(1)
@pytest.mark.parametrize("question", some(["binary", "several"], ["several"]))
@pytest.mark.parametrize("kind", FILES)
def test_predict_and_serve_give_the_bits_of_the_folder(
    projects: dict[tuple[str, str], Project], kind: str, question: str
) -> None:
    project = projects[kind, question]
    scores = wanted(project)
    (project.folder / "in.csv").write_text(BODY, encoding="utf-8")
    done = project.runner("predict", "tiny", "in.csv")
    assert done.code == 0, done.err
    predicted = list(csv.DictReader(io.StringIO(done.out)))
    best = scores if question == "binary" else scores.max(axis=1)
    assert np.array([float(row["probability"]) for row in predicted], "float32").tobytes() == best.tobytes()
    with serving(project, "--workers", "2") as served:
        client = Client(served.port)
        reply = client.score(BODY.encode(), CSV, accept=CSV)
        assert reply.status == 200, reply.body
        assert floats(reply.body.decode()).tobytes() == scores.tobytes()
        for at in range(8):
            alone = client.score(ROWS[at], JSON)
            assert alone.status == 200, alone.body
            (answer,) = alone.json["predictions"]
            assert np.float32(answer["probability"]) == best[at]
            if question == "several":
                assert answer["prediction"] == ["low", "mid", "top"][int(scores[at].argmax())]
        refused = client.score({**ROWS[0], "plan": "platinum"}, JSON)
        assert (refused.status, refused.json["column"]) == (400, "plan")
        if kind == "sklearn":
            refused = client.score({**ROWS[0], "roaming": None}, JSON)
            assert (refused.status, refused.json["column"]) == (400, "roaming")
        client.close()


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", FILES)
def test_an_archive_scores_by_its_own_lines_without_this_package(
    projects: dict[tuple[str, str], Project], tmp_path: Path, kind: str
) -> None:
    """As a container of somebody else's has it: the archive unpacked, its code on the path, nothing of ours."""
    project = projects[kind, "several"]
    (folder,) = project.folder.glob("runs/2*/steps/train/out/model")
    subprocess.run(["tar", "-xz", "-C", str(tmp_path)], input=package(folder).archive, check=True)
    assert (tmp_path / "code" / "runtimes.py").exists() == (kind != "xgboost")
    program = (
        "import sys\nimport inference\n"
        "model = inference.model_fn('..')\nrows = model.table(sys.stdin.buffer.read(), 'text/csv')\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'runner']\n"
        "print(model.reply(model.score(rows), 'text/csv')[0].decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "code", input=BODY.encode(), capture_output=True, check=True
    )
    assert floats(done.stdout.decode().strip()).tobytes() == wanted(project).tobytes()


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", FILES)
def test_a_container_of_ones_own_image_gives_the_bits_of_the_folder(
    projects: dict[tuple[str, str], Project], tmp_path: Path, kind: str
) -> None:
    project = projects[kind, "binary"]
    (folder,) = project.folder.glob("runs/2*/steps/train/out/model")
    image = runner_image(tmp_path, ROOT / "infra/Dockerfile", ROOT / "runner")
    try:
        check_permitted([image])
    except NotPermittedError as error:
        pytest.skip(str(error))
    told = {**ENVIRONMENT, "RUNNER_SHA256": artifact(folder, name="model").sha256, "RUNNER_MODEL": "tiny/1"}
    container = ServingContainer(image, package(folder).archive, told)
    try:
        status, _, answer = ask(container, BODY, accept=CSV)
        assert status == 200, answer
        assert floats(answer.decode()).tobytes() == wanted(project).tobytes()
    finally:
        container.close()


# An image without the runtime


@pytest.mark.parametrize("kind", FILES)
def test_an_image_that_has_xgboost_alone_is_refused_for_other_models(
    projects: dict[tuple[str, str], Project], kind: str
) -> None:
    (folder,) = projects[kind, "binary"].folder.glob("runs/2*/steps/train/out/model")
    files = package(folder).files
    aws, key = serving_image("eu-central-1"), "[targets.production] serving_image"
    check_image(files, "123456789012.dkr.ecr.eu-central-1.amazonaws.com/tiny-image:1", "tiny/1", key)
    if kind == "xgboost":
        check_image(files, aws, "tiny/1", key)
        return
    runtime = {"lightgbm": "LightGBM", "sklearn": "onnxruntime"}[kind]
    with pytest.raises(
        UsageError, match=rf"tiny/1 needs {runtime}, and .*sagemaker-xgboost.* has XGBoost alone"
    ) as refused:
        check_image(files, aws, "tiny/1", key)
    assert f'{key} = "own"' in str(refused.value)


@pytest.mark.parametrize(
    ("imports", "target", "noted"),
    [
        ("from sklearn.linear_model import Ridge", "", True),
        ("import lightgbm as lgb", "", True),
        ("import lightgbm as lgb", 'serving_image = "own"', False),
        ("import xgboost, sklearn.metrics", "", False),
    ],
)
def test_check_says_which_target_could_not_serve_what_the_notebook_trains(
    tmp_path: Path, imports: str, target: str, noted: bool
) -> None:
    project = Project(tmp_path)
    project.write("train.ipynb", parameters('model: str = ""'), imports)
    project.toml(
        'name = "tiny"\n[steps.train]\nnotebook = "train.ipynb"\noutputs = { model = "model/" }\n'
        '[model]\nname = "tiny"\nfrom = "train.model"\n'
        f'[targets.production]\nkind = "sagemaker"\n{target}\n'
    )
    said = "\n".join(plan(tmp_path / "pipeline.toml").warnings)
    assert ('serving_image = "own" in [targets.production]' in said) == noted


# One name

TOML = """
name = "kinds"
[steps.train]
notebook = "train.ipynb"
outputs = { model = "model/" }
parameters = { kind = "xgboost" }
[steps.evaluate]
notebook = "evaluate.ipynb"
inputs = { model = "train.model", champion = "approved:kinds" }
[[gate]]
metric = "evaluate.auc"
min = 0.6
[[gate]]
metric = "evaluate.gain"
min = -0.5
when = "evaluate.champion"
[model]
name = "kinds"
from = "train.model"
[steps.register]
notebook = "register.ipynb"
inputs = { model = "train.model", verdict = "gate.verdict" }
"""
TRAIN = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
from pathlib import Path
from support import kinds
kinds.save(Path(model), kind)
"""
EVALUATE = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
from sklearn.metrics import roc_auc_score
import runner.model
from runner.scraps import metric
from support.kinds import answers, records
frame, truth = records(), answers("binary") == "yes"
auc = roc_auc_score(truth, runner.model.load(model).predict(frame))
metric("auc", auc)
metric("champion", int(bool(champion)))
if champion:
    metric("gain", auc - roc_auc_score(truth, runner.model.load(champion).predict(frame)))
"""


@pytest.mark.soak
def test_three_kinds_compete_for_one_name_and_each_in_turn_is_the_champion(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("train.ipynb", parameters('model: str = ""\nkind: str = ""'), TRAIN)
    project.write("evaluate.ipynb", parameters('model: str = ""\nchampion: str = ""'), EVALUATE)
    project.write(
        "register.ipynb",
        parameters('model: str = ""\nverdict: str = ""'),
        "import runner.model\nrunner.model.register(model)",
    )
    project.toml(TOML)
    (tmp_path / "in.csv").write_text(BODY, encoding="utf-8")
    answers = []
    for number, kind in enumerate(FILES, start=1):
        done = project.runner("run", "--json", "-p", f"train.kind={kind}")
        assert done.code == 0, done.err
        assert done.json["model_version"] == {"name": "kinds", "version": number, "status": "pending"}
        assert done.json["metrics"]["evaluate.champion"]["value"] == (number > 1)
        assert ("evaluate.gain" in done.json["metrics"]) == (number > 1)
        done = project.runner("approve", f"kinds/{number}", "--reason", "better", "--json")
        assert done.code == 0, done.err
        done = project.runner("predict", "kinds", "in.csv")
        assert done.code == 0, done.err
        assert f"scored by kinds/{number}" in done.err
        answers.append(done.out)
    assert len(set(answers)) == 3
    versions = project.runner("models", "--json").json
    assert [version["status"] for version in versions] == ["approved"] * 3
