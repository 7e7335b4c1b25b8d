"""A notebook's request that its model be registered; the run's owner carries it out once the step is sealed."""

from __future__ import annotations

import os
from pathlib import Path

from runner.content import artifact, atomic_write
from runner.errors import UsageError
from runner.records import Registration, encode

STEP_FOLDER = "RUNNER_STEP_FOLDER"  # set for the kernel of a run's step
REQUEST = "registration.json"


def register(model: str | Path, *, card: str = "", description: str = "") -> str:
    """Ask for the model folder to be registered, with its card (Markdown); returns a sentence about what will happen.

    By hand, outside a run, nothing is registered. Raises UsageError on a second call in one step, or for a folder that
    is none.
    """
    model_artifact = artifact(Path(model), name="model")
    step = os.environ.get(STEP_FOLDER)
    if not step:
        return "Nothing is registered: this notebook does not run as a step of `runner run`."
    request = Path(step) / "out" / REQUEST
    if request.exists():
        raise UsageError("runner.model.register was called before in this step; a step registers one model.")
    atomic_write(request, encode(Registration(model_sha256=model_artifact.sha256, card=card, description=description)))
    return f"The model {model_artifact.sha256[:12]} will be registered, pending approval, when this step is sealed."
