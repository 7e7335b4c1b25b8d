"""What was last said of a target by a run that looked at what it captured."""

from __future__ import annotations

from runner.errors import RunnerError
from runner.manifest import RunManifest
from runner.pipeline.file import CAPTURED
from runner.run.store import MANIFEST, Store

MOST_RUNS = 1000  # that are looked through, the newest first


def last_monitored(store: Store, target: str) -> RunManifest | None:
    """The newest run that has ended and took what the target captured; None where none of the newest runs did."""
    source = CAPTURED + target
    quoted = f'"{source}"'.encode()
    for run in store.runs()[:MOST_RUNS]:
        try:
            # most runs are others, and decoding a manifest takes fifty times as long as reading it
            if quoted not in (store.folder(run) / MANIFEST).read_bytes():
                continue
            manifest = store.manifest(run)
        except (OSError, RunnerError):
            continue
        if manifest.ended and source in {fact.source for fact in manifest.sources.values()}:
            return manifest
    return None
