"""What `gc` has removed: a record for each run.

runs/removed/<run>.json
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.content import atomic_write
from runner.paths import FileName, Sha256
from runner.records import FORMAT, Outcome, Record, RunStatus, encode, read

REMOVED = "removed"  # folder of the store
EVENT = "run removed"  # in the history of a version that the run made


class Removal(Record, frozen=True, kw_only=True):
    """Written before the run's folder is removed. `versions` are those that it registered, as NAME/VERSION."""

    format: int = FORMAT
    run: FileName
    at: str  # UTC
    who: str
    command: str
    started: str
    started_by: str
    status: RunStatus
    verdict: Outcome | None
    versions: list[str] = []
    manifest_sha256: Sha256

    def __str__(self) -> str:
        when = f"{self.at[:16].replace('T', ' ')} UTC"
        return f"removed by {self.who} on {when} (`{self.command}`)"


def write(root: Path, removal: Removal) -> None:
    """Record the removal in the store at `root`; replaces one of the same run, which was imported again since."""
    file = _file(root, removal.run)
    file.parent.mkdir(exist_ok=True)
    atomic_write(file, encode(removal))


def find(root: Path, run: str) -> Removal | None:
    """Raises Tampered where the record cannot be read."""
    try:
        return read(Removal, _file(root, run))
    except FileNotFoundError:
        return None


def matching(root: Path, reference: str) -> Iterator[Removal]:
    """The removals of runs whose id begins or ends with `reference`."""
    for file in sorted((root / REMOVED).glob("*.json")):
        if file.stem.startswith(reference) or file.stem.endswith(f"-{reference}"):
            yield read(Removal, file)


def _file(root: Path, run: str) -> Path:
    return root / REMOVED / f"{run}.json"
