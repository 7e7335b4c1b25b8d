"""A version that refuses what callers send, or answers something else, is approved and deployed only where that is
allowed; what few will notice passes, and is said."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import Done
from support.models import records, trained
from support.places import MODEL, RUN, Caller, Place, remade

import runner.model
from runner.content import artifact
from runner.manifest import RunManifest
from runner.model.compatibility import differences, left_out
from runner.model.signature import Column, Kind, Signature
from runner.model.versions import NewVersion
from runner.pipeline.file import load
from runner.records import Verdict, encode
from runner.run import provenance
from runner.scoring import inference

ALLOW = "--allow-schema-change"


def signature(*columns: Column, **more: Any) -> Signature:
    said = {"target": "left", "positive": "yes", "objective": "binary:logistic", "sample_prediction": 0.5, **more}
    return Signature(columns=list(columns), sample_request={}, **said)


def column(name: str, kind: Kind = "number", *categories: str) -> Column:
    return Column(name=name, kind=kind, categories=list(categories) if kind == "category" else None)


AGE, PLAN = column("age"), column("plan", "category", "basic", "gold", "657")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([AGE], [AGE, PLAN], ["plan: the column is needed now; requests without it get 400."]),
        ([AGE, PLAN], [AGE], []),
        ([AGE, PLAN], [PLAN, AGE], ["another order"]),
        ([PLAN], [column("plan", "category", "gold", "basic", "657.0", "iron")], []),
        ([PLAN], [column("plan", "category", "657")], ["plan: basic, gold are not categories any more"]),
        ([PLAN], [column("plan")], ["plan: is a number, was a category; requests with basic, gold get 400."]),
        ([PLAN], [column("plan", "boolean")], ["plan: is a boolean, was a category"]),
        ([AGE], [column("age", "category", "30")], ["age: is a category, was a number"]),
        ([AGE], [column("age", "integer")], ["age: is an integer, was a number; 12.5 is"]),
        ([column("age", "integer")], [AGE], []),
        ([column("age", "integer")], [column("age", "boolean")], ["age: is a boolean, was an integer"]),
        ([column("age", "boolean")], [AGE], ["age: is a number, was a boolean; requests with true and false get 400."]),
        (
            [column("age", "boolean")],
            [column("age", "category", "True")],
            ["requests with other values than True get 400"],
        ),
    ],
)
def test_what_a_signature_takes_no_more_is_said(before: list[Column], after: list[Column], said: list[str]) -> None:
    found = differences(signature(*before), signature(*after))
    assert len(found) == len(said), found
    for sentence, words in zip(found, said, strict=True):
        assert words in sentence


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"threshold": 0.9}, ""),
        ({}, {"positive": "no"}, "Answers are the probability of 'no'; they were the probability of 'yes'."),
        ({}, {"target": "stayed"}, "Answers are about stayed; they were about left."),
        ({}, {"positive": None, "objective": "reg:squarederror"}, "Answers are a number; they were the probability"),
        (
            {"positive": None, "objective": "multi:softprob", "sample_prediction": [0.5, 0.2, 0.3]},
            {"positive": None, "objective": "multi:softprob", "sample_prediction": [0.5, 0.5]},
            "Answers are one of 2 classes; they were one of 3 classes.",
        ),
    ],
)
def test_answers_that_mean_something_else_are_said(before: dict[str, Any], after: dict[str, Any], said: str) -> None:
    found = differences(signature(AGE, **before), signature(AGE, **after))
    assert said in "".join(found)
    assert bool(found) == bool(said)


def test_where_unknown_categories_are_missing_that_is_what_is_said() -> None:
    found = differences(signature(PLAN), signature(column("plan", "category", "basic", "657")), unknown="missing")
    assert found == ["plan: gold is not a category any more and is scored as missing."]


def test_what_is_left_out_is_noticed_by_those_who_send_no_names() -> None:
    assert left_out(signature(AGE, PLAN), signature(AGE)) == [
        "plan is not used any more: CSV without a header and JSON arrays that have it get 400."
    ]
    assert left_out(signature(AGE), signature(AGE, PLAN)) == []


texts = st.sampled_from(["basic", "gold", "657", "657.0", "1", "0", "True", "false", "12.5"])
columns = st.lists(
    st.builds(
        lambda name, kind, categories: column(name, kind, *categories),
        st.sampled_from("abc"),
        st.sampled_from(["number", "integer", "boolean", "category"]),
        st.lists(texts, min_size=1, max_size=4, unique=True),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one.name,
)
values = texts | st.sampled_from([None, "", True, False, 0, 1, 657, 657.0, 12.5, -3, "x"])


@pytest.mark.soak
@settings(max_examples=400, deadline=None)
@given(before=columns, after=columns, data=st.data())
def test_where_nothing_is_said_every_record_that_was_read_is_read(
    before: list[Column], after: list[Column], data: st.DataObject
) -> None:
    if differences(signature(*before), signature(*after)):
        return
    record = {one.name: data.draw(values) for one in before}
    if reads(before, record):
        assert reads(after, record), (record, before, after)


def reads(columns: list[Column], record: dict[str, Any]) -> bool:
    """Whether the reader of requests takes the record."""
    try:
        for one in columns:
            made = inference.ColumnReader({"name": one.name, "kind": one.kind, "categories": one.categories}, "error")
            assert not math.isinf(made.number(record[one.name], 1))
    except inference.BadInput:
        return False
    return True


# From approval to a target


@pytest.fixture
def fourth(place: Place) -> Callable[..., None]:
    """Registers tiny/4 of a changed table, pending, as a run that passed would."""

    def make(change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        raw, folder = change(records()), place.model(4)
        folder.parent.mkdir(parents=True)
        runner.model.save(folder, trained(raw), raw, target="left", positive="yes")
        fact = artifact(folder, name=MODEL)
        new = NewVersion(name="tiny", run=RUN.format(4), sha256=fact.sha256, artifact=fact, created_by="ana@desk")
        manifest = RunManifest(
            run=new.run, pipeline_file="pipeline.toml", pipeline=load(place.folder / "pipeline.toml"),
            started_by="ana@desk", started="2026-11-22T10:16:04.000Z", status="succeeded", steps=[],
            verdict=Verdict(outcome="pass", rules=[], metrics={}), environment=provenance.environment(),
            runner_version="0",
        )  # fmt: skip
        (place.folder / "runs" / new.run / "run.json").write_bytes(encode(manifest))
        assert place.registry.register(new).version == 4

    return make


def narrower(raw: pd.DataFrame) -> pd.DataFrame:
    """Without gold, and with one column more."""
    plan = raw["plan"].cat.remove_categories("gold")
    return raw.assign(plan=plan, region=pd.Categorical(["north", "south"] * (len(raw) // 2)))


def wider(raw: pd.DataFrame) -> pd.DataFrame:
    return raw.assign(plan=raw["plan"].cat.add_categories("iron")).drop(columns="calls")


LOST = (
    "region: the column is needed now; requests without it get 400.",
    "plan: gold is not a category any more and is refused with 400.",
)
REST = "build/rest/record.schema.json has another schema than tiny/4: it lets region be left out. `runner rest tiny/4`"


def refused(done: Done, *words: str) -> None:
    assert done.code == 8, done.err
    for word in (*LOST, ALLOW, *words):
        assert word in done.err, done.err


@pytest.mark.soak
def test_a_version_that_refuses_what_is_sent_is_served_only_where_that_is_allowed(
    place: Place,
    fourth: Callable[..., None],
) -> None:
    fourth(narrower)
    assert place.deploy(1).code == 0
    assert place.runner("rest", "tiny/1").code == 0
    approve = ("approve", "tiny/4", "--reason", "needs the region")
    refused(
        place.runner(*approve),
        "tiny/4 does not answer all that tiny/1 answers, which serves at staging:",
        "tiny/4 does not answer all that tiny/2 answers, which is the approved version:",
        REST,
    )
    refused(place.runner("release", "tiny/4", "--reason", "x", "--to", "staging", "--dry-run"), REST)
    refused(place.runner("release", "tiny/4", "--reason", "x", "--to", "staging", "--yes"))
    assert place.registry.get("tiny", 4).status == "pending"
    done = place.runner(*approve, ALLOW)
    assert (done.code, LOST[0] in done.err) == (0, True), done.err
    assert place.events[-1].data["schema_change"] == {"tiny/1": list(LOST), "tiny/2": list(LOST)}
    assert "already approved" in place.runner(*approve).err

    refused(place.deploy(4), "tiny/1 answers, which serves at staging", REST)
    refused(place.deploy(4, "staging", "--dry-run"), REST)
    assert place.scored() == "tiny/1"
    done = place.deploy(4, "staging", "--dry-run", ALLOW)
    assert (done.code, LOST[0] in done.err) == (0, True)
    done = place.deploy(4, "staging", ALLOW, "--json")
    assert (done.code, done.json["schema_change"]) == (0, {"tiny/1": list(LOST)})
    assert place.events[-1].data["schema_change"] == {"tiny/1": list(LOST)}
    assert place.deploy(4).code == 0  # the same again takes nothing from anybody
    caller = Caller(place.ports["staging"], place.sample(1)[0])
    with pytest.raises(AssertionError, match="Missing column in row 1: region"):
        caller.once()
    caller.close()
    lines = place.runner("history", "tiny").out.splitlines()
    assert [line for line in lines if "deployed (staging), schema change" in line]

    file = place.folder / "pipeline.toml"
    file.write_text(file.read_text() + "second_approval = true\n")  # of production, which serves nothing yet
    remade(place, 5, lambda folder: shutil.copytree(place.model(4), folder, dirs_exist_ok=True), approver="ben@desk")
    assert place.runner("approve", "tiny/5", "--to", "production", "--reason", "x").code == 0


def test_a_way_back_is_never_refused_and_says_what_it_takes(
    place: Place,
    fourth: Callable[..., None],
) -> None:
    fourth(wider)
    assert place.deploy(1).code == 0
    for command in (("approve", "tiny/4", "--reason", "fewer columns"), ("deploy", "tiny/4", "--to", "staging")):
        done = place.runner(*command)
        assert done.code == 0, done.err
        assert "note: calls is not used any more: CSV without a header and JSON arrays that have it get 400" in done.err
        assert "schema_change" not in place.events[-1].data
    said = ("calls: the column is needed now", "plan: iron is not a category any more")
    for more in (("--dry-run",), ()):
        done = place.runner("rollback", "staging", "--reason", "too slow", *more)
        assert done.code == 0, done.err
        assert all(words in done.err for words in said)
    assert place.scored() == "tiny/1"
    assert list(place.events[-1].data["schema_change"]) == ["tiny/4"]


def test_what_cannot_be_compared_is_not_taken_for_the_same(
    place: Place,
) -> None:
    assert place.deploy(1).code == 0
    file: Path = place.model(1) / "signature.json"
    file.chmod(0o644)
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "columns": []}))
    done = place.deploy(2)
    assert (done.code, "What it answers is not known" in done.err) == (8, True), done.err
    assert place.deploy(2, "staging", ALLOW).code == 0
    assert place.scored() == "tiny/2"
