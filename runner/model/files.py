"""The files of a model folder: read once, hashed, and refused where loading them could run code."""

from __future__ import annotations

import hashlib
import pickletools
from collections.abc import Mapping
from pathlib import Path

from runner.content import folder_artifact, walk
from runner.errors import Refused, RunnerError, Tampered
from runner.model import lightgbm_file, onnx_file
from runner.model.earlier import check_earlier
from runner.model.signature import Signature
from runner.model.versions import ModelVersion
from runner.records import FileFact, checked, decode

MODEL, SIGNATURE, CODE = "model.ubj", "signature.json", "features.py"
GRAPH, TEXT = "model.onnx", "model.txt"
TREES = (MODEL, "model.json")  # of XGBoost
MODEL_FILES = (*TREES, GRAPH, TEXT)
FAULTS = {GRAPH: onnx_file.fault, TEXT: lightgbm_file.fault}
# pickle from protocol 2 on, zip (torch), and what joblib compresses with (zlib, gzip, bzip2, xz, lz4): formats that
# execute code when they are loaded; pickles of protocol 0 and 1 have no such beginning and are parsed
PICKLES = (
    *(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5)),
    b"PK\x03\x04",
    *(b"\x78" + level for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x04\x22\x4d\x18",
)


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of each file by its path in the folder, so that what is checked is what is used.

    Raises Refused for a pipe or device, which could hang; UsageError for a link that leaves the folder.
    """
    files = {}
    for relative, path in walk(folder):
        if not path.is_file():
            raise Refused(f"{path} is not a regular file.")
        files[relative] = path.read_bytes()
    return files


def sha256_of(files: Mapping[str, bytes]) -> str:
    """The hash that `runner.content.artifact` gives a folder with these files."""
    facts = {
        name: FileFact(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in files.items()
    }
    return folder_artifact("", facts).sha256


def check_format(folder: Path) -> None:
    """As `check_files`, for the folder as it is."""
    check_files(read_files(folder), folder)


def check_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Raises Refused where there is not one model of a format that holds no code, and where a file is a pickle."""
    for relative, content in files.items():
        if Path(relative).suffix in (".pkl", ".pickle", ".joblib") or _is_pickle(content):
            raise Refused(
                f"{folder / relative} is a pickle or an archive, which can run code when it is loaded. Write the "
                "folder with runner.model.save alone."
            )
        if relative in TREES and not content.startswith(b"{"):
            raise Refused(f"{folder / relative} is neither UBJ nor JSON.")
        if relative in FAULTS and (fault := FAULTS[relative](content)):
            raise Refused(f"{folder / relative} {fault}.")
    for needed in (MODEL_FILES, (SIGNATURE,)):
        if not any(name in files for name in needed):
            raise Refused(f"{folder} has no {' or '.join(needed)}. Save the model with runner.model.save.")
    if len(models := [name for name in MODEL_FILES if name in files]) > 1:
        raise Refused(f"{folder} has {' and '.join(models)}, and a folder holds one model.")
    check_earlier(files, folder)


def check_bytes(version: ModelVersion, folder: Path) -> dict[str, bytes]:
    """The folder's files, if they are the registered ones. Raises Tampered, or Refused for a pickle."""
    try:
        files = read_files(folder)
    except (RunnerError, OSError) as error:
        raise Tampered(f"The model folder of {version.label} cannot be read: {error}") from error
    if sha256_of(files) != version.sha256:
        raise Tampered(f"{version.label} was altered: its bytes do not have the registered hash {version.sha256[:12]}.")
    check_files(files, folder)
    return files


def signature_of(files: Mapping[str, bytes], folder: Path) -> Signature:
    """The folder's signature. Raises Tampered where the code of its features is not what the model was trained with."""
    where = folder / SIGNATURE
    signature = checked(decode(Signature, files[SIGNATURE], where=where), where=where)
    if signature.code_sha256 not in (None, hashlib.sha256(files.get(CODE, b"")).hexdigest()):
        raise Tampered(f"{folder / CODE} is not the code this model was trained with.")
    return signature


def _is_pickle(content: bytes) -> bool:
    if content.startswith(PICKLES):
        return True
    try:
        *_, (_, _, stop) = pickletools.genops(content)
    except (ValueError, OverflowError):  # most files: not a word of it is one of pickle's
        return False
    return stop is not None and not content[stop + 1 :].strip()
