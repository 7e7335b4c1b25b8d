"""An approved version, ready to score: the bytes that are loaded are the ones that are hashed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import Refused
from runner.model.files import check_bytes, signature_of
from runner.model.registry_rules import check_approved
from runner.model.signature import Unknown
from runner.model.versions import ModelVersion

if TYPE_CHECKING:
    from runner.scoring.inference import Scorer


def load(version: ModelVersion, folder: Path, *, unknown: Unknown = "error", threads: int = 1) -> Scorer:
    """Scores by the version, whose files are in `folder`, after a self-test on its sample record.

    Raises Refused where it is not approved or cannot score its sample, Tampered where a byte is not as registered.
    """
    from runner.scoring.fast_reading import quick, texts
    from runner.scoring.inference import Scorer  # numpy

    check_approved(version)
    files = check_bytes(version, folder)
    signature_of(files, folder)
    try:
        scorer = Scorer(files, unknown=unknown, model=version.label, threads=threads).self_test()
    except Exception as error:  # features.py among them, which may raise anything
        raise Refused(f"{version.label} cannot score its own sample record: {error}") from error
    scorer.quick, scorer.texts = quick(scorer), texts
    return scorer
