"""An approved version, ready to score: the bytes that are loaded are the ones that are hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from runner.content import folder_artifact
from runner.errors import Refused, RunnerError, Tampered
from runner.model.approval import check_files, read_files
from runner.model.signature import Signature, Unknown
from runner.model.versions import ModelVersion
from runner.records import FileFact, checked, decode

if TYPE_CHECKING:
    from runner.scoring.inference import Scorer


def load(version: ModelVersion, folder: Path, *, unknown: Unknown = "error", threads: int = 1) -> Scorer:
    """Scores by the version, whose files are in `folder`, after a self-test on its sample record.

    Raises Refused where it is not approved or cannot score its sample, Tampered where a byte is not as registered.
    """
    from runner.scoring.fast_reading import quick
    from runner.scoring.inference import Scorer  # numpy

    label = version.label
    if version.status != "approved":
        raise Refused(
            f"{label} is {version.status}; only an approved version scores. See `runner models {version.name}`."
        )
    try:
        files = read_files(folder)
        facts = {name: FileFact(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)) for name, data in files.items()}  # fmt: skip
    except (RunnerError, OSError) as error:
        raise Tampered(f"The model folder of {label} cannot be read: {error}") from error
    if folder_artifact("", facts).sha256 != version.sha256:
        raise Tampered(f"{label} was altered: its bytes do not have the registered hash {version.sha256[:12]}.")
    check_files(files, folder)
    signature = checked(decode(Signature, files["signature.json"], where=folder), where=folder)
    code = facts.get("features.py")
    if signature.code_sha256 is not None and (code is None or code.sha256 != signature.code_sha256):
        raise Tampered(f"The features.py of {label} is not the code it was trained with.")
    try:
        scorer = Scorer(files, unknown=unknown, model=label, threads=threads).self_test()
    except Exception as error:  # features.py among them, which may raise anything
        raise Refused(f"{label} cannot score its own sample record: {error}") from error
    scorer.quick = quick(scorer)
    return scorer
