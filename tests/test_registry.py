"""Every registry numbers versions without gaps, takes a decision once, and keeps a history that shows any change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from small_sagemaker import SmallSageMaker
from support.registries import SECOND_MODEL, emptied, everything, in_sagemaker, new, numbers, started

from runner.errors import Refused, UsageError
from runner.model.copies import facts_json
from runner.model.events import FIRST, STATES, chained, state, verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import Event, ModelVersion, NewVersion, Registry
from runner.records import Artifact, FileFact, Metric, decode, encode


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with started() as made:
        yield made


@pytest.fixture(params=["local", "sagemaker"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """Each implementation of the protocol; the tests that take it hold for all of them."""
    match request.param:
        case "local":
            return LocalRegistry(tmp_path / "runs" / "registry.db")
        case "sagemaker":
            emptied(request.getfixturevalue("cloud"))
            return in_sagemaker(tmp_path, cache=tmp_path / "cache")
        case _:
            raise AssertionError(request.param)


def test_a_version_without_its_starter_s_arn_has_the_hash_that_it_had_before_there_was_one() -> None:
    facts = msgspec.json.decode(facts_json(new(1)))
    assert "identity" not in facts
    assert msgspec.json.encode({**facts, "identity": "arn"}, order="sorted") == facts_json(
        msgspec.structs.replace(new(1), identity="arn")
    )


# What every registry promises


def test_versions_are_numbered_per_name_without_gaps(registry: Registry) -> None:
    made = [registry.register(new(number, name=name)) for number in (1, 2, 3) for name in ("b", "a")]
    assert numbers(made) == [(name, number, "pending") for number in (1, 2, 3) for name in ("b", "a")]
    assert numbers(registry.list()) == [(name, number, "pending") for name in ("a", "b") for number in (1, 2, 3)]
    assert numbers(registry.list("b")) == [("b", 1, "pending"), ("b", 2, "pending"), ("b", 3, "pending")]


def test_a_version_holds_all_that_was_given(registry: Registry) -> None:
    made = registry.register(new(1))
    assert registry.get("m", 1) == made
    assert {field: getattr(made, field) for field in NewVersion.__struct_fields__} == msgspec.structs.asdict(new(1))
    assert (made.decided_by, made.reason) == (None, None)
    assert made.created.endswith("Z")


def test_a_run_registers_once_and_never_other_bytes(registry: Registry) -> None:
    first = registry.register(new(1))
    registry.decide("m", 1, "rejected", who="ben", why="no")
    again = registry.register(new(1))
    assert (again.version, again.status, again.created) == (1, "rejected", first.created)
    with pytest.raises(Refused, match="other bytes"):
        registry.register(new(1, sha256=SECOND_MODEL))
    assert registry.register(new(1, name="other")).version == 1
    assert registry.register(new(2)).version == 2
    assert [event.kind for event in registry.events("m")] == ["registered", "rejected", "registered"]


@pytest.mark.parametrize("decisions", [["approved"], ["rejected"], ["approved", "rejected"]])
def test_a_decision_follows_from_the_state_before(registry: Registry, decisions: list[Any]) -> None:
    registry.register(new(1))
    for decision in decisions:
        made = registry.decide("m", 1, decision, who="ana", why=f"because {decision}", data={"at": "desk"})
        assert (made.status, made.decided_by, made.reason) == (decision, "ana", f"because {decision}")
        assert registry.get("m", 1) == made
    assert registry.events("m")[-1].data == {"at": "desk"}


@pytest.mark.cases(5)
@pytest.mark.parametrize(
    ("decisions", "refused"),
    [
        (["approved"], "approved"),
        (["rejected"], "rejected"),
        (["rejected"], "approved"),
        (["approved", "rejected"], "approved"),
        (["approved", "rejected"], "rejected"),
    ],
)
def test_every_other_decision_is_refused_and_leaves_no_trace(
    registry: Registry, decisions: list[Any], refused: Any
) -> None:
    registry.register(new(1))
    for decision in decisions:
        registry.decide("m", 1, decision, who="ana", why="reviewed")
    before = everything(registry)
    with pytest.raises(Refused, match=f"already {decisions[-1]}, by ana .*reviewed"):
        registry.decide("m", 1, refused, who="ben", why="late")
    assert everything(registry) == before


def test_the_highest_approved_version_counts(registry: Registry) -> None:
    for number in (1, 2, 3, 4):
        registry.register(new(number))
    assert registry.approved("m") is None
    found = []
    for number, decision in [(2, "approved"), (1, "approved"), (3, "approved"), (4, "rejected"), (3, "rejected")]:
        registry.decide("m", number, decision, who="ana", why="reviewed")  # type: ignore[arg-type]
        champion = registry.approved("m")
        found.append(champion.version if champion else None)
    assert found == [2, 2, 3, 3, 2]
    assert registry.approved("unheard-of") is None


def test_each_event_says_who_when_and_why_and_follows_the_one_before(registry: Registry) -> None:
    registry.register(new(1))
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    events = registry.events("m")
    assert [(event.seq, event.kind, event.who, event.why) for event in events] == [
        (1, "registered", "ana", ""),
        (2, "approved", "ben", "reviewed"),
    ]
    assert [event.previous for event in events] == [FIRST, events[0].hash]
    assert events[0].at == registry.get("m", 1).created
    assert verify_chain(events) is None


def test_what_is_recorded_changes_no_state_and_follows_in_the_chain(registry: Registry) -> None:
    registry.register(new(1))
    registry.decide("m", 1, "approved", who="ben", why="reviewed")
    before = [registry.get("m", 1), registry.approved("m")]
    kinds = ["deployed", "rolled back", "removed", "approved for production"]
    made = [registry.record("m", 1, kind, who="ana", why="ticket 41", data={"target": "production"}) for kind in kinds]
    assert [registry.get("m", 1), registry.approved("m")] == before
    assert list(registry.events("m"))[2:] == made
    assert [(event.seq, event.kind, event.who, event.data) for event in made] == [
        (seq, kind, "ana", {"target": "production"}) for seq, kind in enumerate(kinds, 3)
    ]
    assert verify_chain(registry.events("m")) is None
    with pytest.raises(Refused, match=f"by ben at {registry.events('m')[1].at}"):  # the decision's time
        registry.decide("m", 1, "approved", who="ana", why="again")
    assert registry.decide("m", 1, "rejected", who="ana", why="wrong month").status == "rejected"
    assert everything(registry)


def test_nothing_is_recorded_of_what_is_not_there(registry: Registry) -> None:
    registry.register(new(1))
    before = everything(registry)
    with pytest.raises(UsageError, match="its versions are 1 to 1"):
        registry.record("m", 2, "deployed", who="ana", why="")
    with pytest.raises(UsageError, match="Registered: m"):
        registry.record("n", 1, "deployed", who="ana", why="")
    with pytest.raises(AssertionError):
        registry.record("m", 1, "approved", who="ana", why="")
    assert everything(registry) == before


def test_what_is_not_there_is_said_with_what_is(registry: Registry) -> None:
    assert list(registry.list()) == []
    with pytest.raises(UsageError, match="none yet"):
        registry.get("m", 1)
    registry.register(new(1))
    with pytest.raises(UsageError, match="its versions are 1 to 1"):
        registry.get("m", 2)
    with pytest.raises(UsageError, match="its versions are 1 to 1"):
        registry.decide("m", 0, "approved", who="ana", why="reviewed")
    with pytest.raises(UsageError, match="Registered: m"):
        registry.list("n")
    with pytest.raises(UsageError, match="Registered: m"):
        registry.events("n")


@pytest.mark.parametrize("name", ["", "-m", "a/b", "../m", "a b", "ä", "m" * 64, "m\n"])
def test_a_name_that_is_none_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="is not a model name"):
        registry.register(new(1, name=name))
    assert list(registry.list()) == []


# The chain of events


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Event]:
    made = LocalRegistry(tmp_path_factory.mktemp("history") / "registry.db")
    made.register(new(1))
    made.register(new(2))
    made.decide("m", 1, "approved", who="ana", why="reviewed")
    made.decide("m", 1, "rejected", who="ben", why="wrong month")
    return made.events("m")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda e: [e[0], msgspec.structs.replace(e[1], why="other"), *e[2:]], "event 2 .* was altered"),
        (lambda e: [e[0], msgspec.structs.replace(e[1], at="2026-01-01T00:00:00.000Z"), *e[2:]], "event 2 .* altered"),
        (lambda e: [e[0], msgspec.structs.replace(e[1], data={"x": 1}), *e[2:]], "event 2 .* was altered"),
        (lambda e: e[1:], "where event 1 was: one was removed or moved"),
        (lambda e: [e[0], *e[2:]], "event 3 .* where event 2 was"),
        (lambda e: [e[1], e[0], *e[2:]], "event 2 .* where event 1 was"),
        (lambda e: [e[0], chained(replace(e[1], why="other")), *e[2:]], "event 3 .* does not follow"),
        (lambda e: [e[0], chained(replace(e[2], seq=2)), *e[3:]], "event 2 .* does not follow"),
    ],
)
def test_a_changed_removed_or_moved_event_is_named(
    history: Sequence[Event], change: Callable[[Sequence[Event]], list[Event]], found: str
) -> None:
    assert verify_chain(history) is None
    broken = verify_chain(change(history))
    assert broken is not None
    assert re.search(found, broken)


# Records

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
values = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:."), min_size=1, max_size=12)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
artifacts = st.builds(
    Artifact,
    path=paths,
    sha256=digests,
    size_bytes=st.integers(0, 2**40),
    files=st.none()
    | st.dictionaries(paths, st.builds(FileFact, sha256=digests, size_bytes=st.integers(0, 2**40)), max_size=2),
)
versions = st.builds(
    ModelVersion,
    name=names,
    version=st.integers(1, 2**31),
    status=st.sampled_from(["pending", "approved", "rejected"]),
    run=names,
    sha256=digests,
    artifact=artifacts,
    metrics=st.dictionaries(texts, st.builds(Metric, value=finite, low=st.none() | finite), max_size=3),
    created=texts,
    created_by=texts,
    decided_by=st.none() | texts,
    reason=st.none() | texts,
    commit=st.none() | texts,
    sources=st.dictionaries(texts, digests, max_size=2),
    description=texts,
    card=texts,
    location=texts,
)
drafts = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from(["registered", "approved", "rejected", "reopened", "deployed"]),
        texts,
        st.dictionaries(texts, values, max_size=2),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(versions)
def test_a_version_survives_its_json(version: ModelVersion) -> None:
    assert decode(ModelVersion, encode(version), where="memory") == version
    assert encode(decode(ModelVersion, encode(version), where="memory")) == encode(version)


@settings(max_examples=60, deadline=None)
@given(drafts)
def test_a_chain_survives_its_json_and_gives_each_version_its_last_state(drafts: list[Any]) -> None:
    events: list[Event] = []
    for seq, (version, kind, why, data) in enumerate(drafts, 1):
        previous = events[-1].hash if events else FIRST
        place = {"seq": seq, "previous": previous, "hash": ""}
        event = Event(name="m", version=version, kind=kind, who="ana", at="t", why=why, data=data, **place)
        events.append(chained(event))
    read = [decode(Event, encode(event), where="memory") for event in events]
    assert read == events
    assert verify_chain(read) is None
    for version in {event.version for event in events}:
        own = [event for event in events if event.version == version and event.kind != "deployed"]
        last = own[-1] if own else None
        decided = last if last is not None and last.kind != "registered" else None
        assert state(read, version) == (STATES[decided.kind] if decided else "pending", decided)
