"""What `docker run IMAGE serve` starts in an image of infra/Dockerfile: a model's files behind `runner serve`'s server.

SageMaker unpacks the model's archive to /opt/ml/model, says in RUNNER_… which version that is, and lets nobody but
itself reach port 8080. https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from runner.content import artifact
from runner.errors import UsageError
from runner.model.versions import ModelVersion

FOLDER, HOST, PORT = Path("/opt/ml/model"), "0.0.0.0", 8080


def main() -> NoReturn:
    """Answer until SIGTERM. Leaves with a sentence where the model is not the one that was deployed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before XGBoost is loaded: a process per core
    from runner.scoring.fast_reading import quick, texts
    from runner.scoring.inference import loaded
    from runner.serve.app import Application, RequestLimits
    from runner.serve.listening import bind
    from runner.serve.metrics import Metrics
    from runner.serve.server import serve

    try:
        scorer = loaded(FOLDER, os.environ)
        version = version_from(FOLDER, os.environ)
    except (OSError, ValueError, UsageError) as error:
        sys.exit(f"The model cannot be served: {error}")
    scorer.quick, scorer.texts = quick(scorer), texts
    workers = len(os.sched_getaffinity(0))
    application = Application(scorer, version, limits=RequestLimits(), metrics=Metrics(workers), any_host=True)
    application.log.note(f"serving {version.label} on port {PORT} with {workers} workers")
    serve(application, bind(HOST, PORT), workers=workers, on_ready=lambda: None)
    sys.exit(0)


def version_from(folder: Path, environment: Mapping[str, str]) -> ModelVersion:
    """The version as far as an endpoint knows it."""
    name, _, number = environment.get("RUNNER_MODEL", "model/0").partition("/")
    model_artifact = artifact(folder, name="model")
    return ModelVersion(
        name=name,
        version=int(number or 0),
        status="approved",
        run="unknown",
        sha256=environment.get("RUNNER_SHA256", model_artifact.sha256),
        artifact=model_artifact,
        metrics={},
        created="",
        created_by="–",
    )


if __name__ == "__main__":
    main()
