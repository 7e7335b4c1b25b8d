"""Decisions on versions: what is checked before one is written down."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.content import artifact, bytes_fact, folder_artifact, walk
from runner.errors import Refused, RunnerError, Tampered, UsageError
from runner.manifest import RunManifest
from runner.model.earlier import check_earlier
from runner.model.versions import ModelVersion
from runner.records import ApprovalSpec

if TYPE_CHECKING:
    from runner.model.versions import Registry

# pickle from protocol 2 on, zip (torch), and what joblib compresses with (zlib, gzip, bzip2, xz, lz4): formats that
# execute code when they are loaded; pickles of protocol 0 and 1 have no such beginning and are parsed
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22\x4d\x18")  # fmt: skip
MODEL_FILES = ("model.ubj", "model.json")
ANYBODY = ApprovalSpec()


def approve(
    registry: Registry,
    name: str,
    version: int,
    *,
    manifest: RunManifest,
    model_folder: Path,
    who: str,
    why: str,
    rules: ApprovalSpec = ANYBODY,
    identity: str = "",
    schema_change: Callable[[ModelVersion], dict[str, list[str]]] = lambda _: {},
) -> ModelVersion:
    """Approve a pending version whose run succeeded with a passing verdict and whose bytes are those of the run.

    `who` is `user@host`; `identity` the caller's ARN where AWS knows the caller, kept with the decision; so is what
    `schema_change` gives, which raises Refused where that is not allowed.
    Raises Refused with what is not so or who may decide, Tampered where bytes differ, UsageError without a reason.
    """
    reasoned(why)
    may_decide(rules, f"{name}/{version}", who, identity)
    found = registry.get(name, version)
    begun = (manifest.started_by, manifest.identity or found.identity)
    if rules.not_starter and any(same_person(*one, who, identity) for one in (begun, *starters(found))):
        raise Refused(
            f"{_person(who, identity)} started the run of {name}/{version} and may not approve it "
            "([approval] not_starter in pipeline.toml). Somebody else has to; rejecting it is allowed."
        )
    if manifest.run != found.run:
        raise Refused(f"{name}/{version} comes from run {found.run}, not {manifest.run}.")
    if manifest.status != "succeeded":
        raise Refused(
            f"The run of {name}/{version}, {manifest.run}, is {manifest.status}. Only one that succeeded counts."
        )
    if manifest.verdict is None or manifest.verdict.outcome != "pass":
        said = manifest.verdict.outcome if manifest.verdict else "none"
        raise Refused(f"The gate's verdict on {name}/{version} is {said}. Only what passed can be approved.")
    try:
        now = artifact(model_folder, name=found.artifact.path)
    except RunnerError as error:
        raise Tampered(f"The model folder of {name}/{version} cannot be read: {error}") from error
    if now.sha256 != found.sha256:
        changed = set((now.files or {}).items()) ^ set((found.artifact.files or {}).items())
        names = ", ".join(sorted({path for path, _ in changed})) or model_folder.name
        raise Tampered(f"The model of {name}/{version} was altered since its run ({names}). It cannot be approved.")
    check_format(model_folder)
    data = _known_by(identity)
    if found.status == "pending" and (lost := schema_change(found)):
        data = {**(data or {}), "schema_change": lost}
    return registry.decide(name, version, "approved", who=who, why=why, data=data)


def reject(
    registry: Registry,
    name: str,
    version: int,
    *,
    who: str,
    why: str,
    rules: ApprovalSpec = ANYBODY,
    identity: str = "",
) -> ModelVersion:
    """Reject a pending version or revoke an approved one.

    Raises Refused where it is rejected already, or by somebody who may not decide.
    """
    reasoned(why)
    may_decide(rules, f"{name}/{version}", who, identity)
    return registry.decide(name, version, "rejected", who=who, why=why, data=_known_by(identity))


def starters(version: ModelVersion) -> list[tuple[str, str]]:
    """Who may count as having started the version's run, each with their ARN: of an imported one whoever took it in,
    and whoever started it there, as is said."""
    said = version.imported
    there = [] if said is None else [(said.started_by, said.identity)]
    return [(version.created_by, version.identity), *there]


def check_format(folder: Path) -> None:
    """Raises Refused where the folder's model is not XGBoost's own UBJ or JSON, or any file in it is a pickle."""
    check_files(read_files(folder), folder)


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of each file by its path in the folder, so that what is checked is what is used.

    Raises Refused for a pipe or device, which could hang; UsageError for a link that leaves the folder.
    """
    found = {}
    for relative, path in walk(folder):
        if not path.is_file():
            raise Refused(f"{path} is not a regular file.")
        found[relative] = path.read_bytes()
    return found


def check_files(files: Mapping[str, bytes], folder: Path) -> None:
    """As `check_format`, for the folder's content."""
    for relative, content in files.items():
        if Path(relative).suffix in (".pkl", ".pickle", ".joblib") or _is_pickle(content):
            raise Refused(
                f"{folder / relative} is a pickle or an archive, which can run code when it is loaded. Use UBJ or JSON."
            )
        if relative in MODEL_FILES and not content.startswith(b"{"):
            raise Refused(f"{folder / relative} is neither UBJ nor JSON.")
    for needed in (MODEL_FILES, ("signature.json",)):
        if not any(name in files for name in needed):
            raise Refused(f"{folder} has no {' or '.join(needed)}. Save the model with runner.model.save.")
    check_earlier(files, folder)


def check_bytes(version: ModelVersion, folder: Path) -> dict[str, bytes]:
    """The folder's files, if they are the registered ones. Raises Tampered, or Refused for a pickle."""
    label = version.label
    try:
        files = read_files(folder)
    except (RunnerError, OSError) as error:
        raise Tampered(f"The model folder of {label} cannot be read: {error}") from error
    facts = {name: bytes_fact(content) for name, content in files.items()}
    if folder_artifact("", facts).sha256 != version.sha256:
        raise Tampered(f"{label} was altered: its bytes do not have the registered hash {version.sha256[:12]}.")
    check_files(files, folder)
    return files


def _is_pickle(content: bytes) -> bool:
    if content.startswith(PICKLES):
        return True
    try:
        *_, (_, _, stop) = pickletools.genops(content)
    except (ValueError, OverflowError):  # most files: not a word of it is one of pickle's
        return False
    return stop is not None and not content[stop + 1 :].strip()


def may_decide(rules: ApprovalSpec, version: str, who: str, identity: str) -> None:
    """Raises Refused where [approval] by names others; whom AWS knows is called by ARN, or by its last part."""
    called = {identity, identity.rpartition("/")[2]} if identity else names_of(who)
    if rules.by and not called & set(rules.by):
        raise Refused(
            f"{_person(who, identity)} may not decide on {version}: only {', '.join(rules.by)} may "
            "([approval] by in pipeline.toml)."
        )


def same_person(one: str, one_arn: str, other: str, other_arn: str) -> bool:
    """Whether they may be one person: by their ARNs where AWS knows both, otherwise by what they can be called.

    A machine's account proves little: who may become another one is another one, and in Studio all are `sagemaker-user`.
    """
    if one_arn and other_arn:
        return one_arn == other_arn
    return bool(names_of(one, one_arn) & names_of(other, other_arn))


def names_of(who: str, identity: str = "") -> set[str]:
    """What somebody can be called: `user@host`, `user`, and the ARN's last part, which is a user or a session."""
    return {name for name in (who, who.partition("@")[0], identity.rpartition("/")[2]) if name}


def _person(who: str, identity: str) -> str:
    return f"{who} ({identity.rpartition('/')[2]})" if identity else who


def _known_by(identity: str) -> dict[str, Any] | None:
    return {"identity": identity} if identity else None


def reasoned(why: str) -> None:
    """Raises UsageError where no reason is given."""
    if not why.strip():
        raise UsageError("A decision needs a reason: --reason TEXT.")
