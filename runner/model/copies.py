"""A registry's events once more, a readable file each, from which a damaged registry can be made anew.

registry-events/<name>/<seq>.json   the event, and the version's facts where it is a registration
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from runner.content import atomic_write
from runner.model.versions import Event, ModelVersion, NewVersion
from runner.records import FORMAT, Record, encode, read


class Copy(Record, frozen=True, kw_only=True):
    format: int = FORMAT
    event: Event
    facts: NewVersion | None = None


def facts_of(version: NewVersion | ModelVersion) -> NewVersion:
    """What never changes of a version."""
    return NewVersion(**{field: getattr(version, field) for field in NewVersion.__struct_fields__})


def facts_json(version: NewVersion | ModelVersion) -> bytes:
    """What never changes of a version; equal facts give equal bytes, whose hash is in the event of its registration."""
    facts = msgspec.to_builtins(facts_of(version))
    for late in ("identity", "imported"):  # as in versions that were registered before there was one
        if not facts[late]:
            del facts[late]
    return msgspec.json.encode(facts, order="sorted")


def keep(folder: Path, events: Sequence[Event], versions: Mapping[int, ModelVersion]) -> None:
    """Write those of one name's events that are not there yet; one that a kill prevented is among them."""
    missing = []
    for event in reversed(events):
        file = folder / event.name / f"{event.seq:06}.json"
        if file.exists():
            break
        missing.append((file, event))
    for file, event in reversed(missing):  # the oldest first: what is there is always a whole beginning
        file.parent.mkdir(parents=True, exist_ok=True)
        facts = facts_of(versions[event.version]) if event.kind == "registered" else None
        atomic_write(file, encode(Copy(event=event, facts=facts)))


def kept(folder: Path) -> Iterator[tuple[dict[int, NewVersion], list[Event]]]:
    """Each name's versions by number, and its events in order. Raises Tampered for a file that is no such record."""
    for name in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = [read(Copy, file) for file in sorted(name.glob("*.json"))]
        if found:
            facts = {copy.event.version: copy.facts for copy in found if copy.facts is not None}
            yield facts, [copy.event for copy in found]
