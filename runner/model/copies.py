"""Copies of a registry's events, one readable file each, from which a damaged registry can be rebuilt.

registry-events/<name>/<seq>.json   the event, and the version's facts where it is a registration
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from runner.content import atomic_write
from runner.errors import Refused, Tampered
from runner.model.events import digest
from runner.model.registry_file import REBUILD
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


def keep(
    folder: Path, events: Sequence[Event], versions: Mapping[int, NewVersion | ModelVersion], *, all_: bool = False
) -> int:
    """Write those of one name's events that are not there yet; one that a kill prevented is among them. How many.

    Where one is there, those before it are too; only with `all_` are they looked at.
    """
    missing = []
    for event in reversed(events):
        file = _file(folder, event)
        if not file.exists():
            missing.append((file, event))
        elif not all_:
            break
    for file, event in reversed(missing):  # the oldest first: what is there is always a whole beginning
        file.parent.mkdir(parents=True, exist_ok=True)
        facts = facts_of(versions[event.version]) if event.kind == "registered" else None
        atomic_write(file, encode(Copy(event=event, facts=facts)))
    return len(missing)


def kept(folder: Path) -> Iterator[tuple[dict[int, NewVersion], list[Event]]]:
    """Each name's versions by number, and its events in order. Raises Tampered for a file that is not such a record."""
    for name in _names(folder):
        copies = [_read(file) for file in sorted(name.glob("*.json"))]
        if copies:
            facts = {copy.event.version: copy.facts for copy in copies if copy.facts is not None}
            yield facts, [copy.event for copy in copies]


def heads(folder: Path) -> dict[str, Event]:
    """The last event of each name. Raises Tampered for a file that is not such a record, or was altered."""
    last_files = {name.name: max(name.glob("*.json"), default=None) for name in _names(folder)}
    return {name: _read(file).event for name, file in last_files.items() if file is not None}


def merged(events: Sequence[Event], copied: Sequence[Event]) -> list[Event]:
    """One name's events that the registry or the copies have. Raises Refused where they are two histories."""
    by_seq = {event.seq: event for event in events}
    for event in copied:
        if by_seq.setdefault(event.seq, event) != event:
            raise Refused(str(another(event.name, event.seq)))
    return [by_seq[seq] for seq in sorted(by_seq)]


def differences(folder: Path, name: str, events: Sequence[Event]) -> Iterator[str]:
    """A sentence about each of one name's events whose copy is gone, cannot be read or is another."""
    for event in events:
        file = _file(folder, event)
        try:
            if _read(file).event != event:
                yield str(another(name, event.seq, folder))
        except FileNotFoundError:
            yield f"{name}: the copy of event {event.seq} is gone from {folder}. Write it again: `{REBUILD}`."
        except Tampered as error:
            yield str(error)


def another(name: str, seq: int, folder: Path | str = "the copies") -> Tampered:
    """The registry and the copies tell two histories."""
    return Tampered(
        f"Event {seq} of {name} is another one in {folder} than in the registry: one of the two was altered. What "
        f"`runner history {name} --head` said, kept elsewhere, tells which is right; move the other away, then "
        f"`{REBUILD}`."
    )


def _names(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _file(folder: Path, event: Event) -> Path:
    return folder / event.name / f"{event.seq:06}.json"


def _read(file: Path) -> Copy:
    """Raises Tampered unless the event in it is the one of its name, with its hash; FileNotFoundError."""
    copy = read(Copy, file)
    event = copy.event
    if (event.name, f"{event.seq:06}.json") != (file.parent.name, file.name) or digest(event) != event.hash:
        raise Tampered(f"{file} was altered: its content does not give its hash, or it was moved.")
    return copy
