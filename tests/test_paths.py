"""What a record may hold where it becomes a path: whatever stays below its folder, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import Done
from support.projects import Project, parameters

from runner.content import artifact
from runner.errors import NewerStore, Tampered, UsageError
from runner.manifest import RunManifest
from runner.model.versions import Event, ModelVersion, NewVersion
from runner.paths import inside, stays_below
from runner.records import Artifact, StepJob, StepResult, decode, encode

FACT = {"sha256": "a" * 64, "size_bytes": 1}
OUT = ["/etc/passwd", "../x", "..", "a/../../x", "a/..", "..\\x", "a\\..\\..\\x", "\\x", "C:\\x", "C:/x", "c:x", "a\0b",
       "a\nb", "", "a\x1b[2J", "a\x7f"]  # fmt: skip
BELOW = ["out/table.csv", "out/model/", "..x", "x..", "...", "a/..b/c", "we\\ird", "größe/ß.txt", "a b/c",
         "s3://bucket/key", "https://host/a?b=..%2F", ".zattrs", "day=2024-01-01/part:0"]  # fmt: skip
names = st.text(st.sampled_from("ab./\\:\0\n é"), max_size=8)


@settings(max_examples=2000, deadline=None)
@given(names)
def test_a_path_that_a_record_takes_stays_below_its_folder_on_every_system(path: str) -> None:
    try:
        decode(Artifact, msgspec.json.encode({"path": path, **FACT}), where="memory")
    except Tampered:
        return
    for written in (path, path.replace("\\", "/")):
        whole = os.path.normpath(Path("/base/folder") / written)
        assert (whole + "/").startswith("/base/folder/")
    assert "\0" not in path
    assert "\n" not in path


def test_what_leads_out_is_refused_in_words_and_what_stays_below_is_taken() -> None:
    for path in OUT:
        assert not stays_below(path)
        with pytest.raises(Tampered, match="leads out"):
            inside(path)
        with pytest.raises(Tampered, match=r"Expected a path that stays below its folder - at `\$\.path`"):
            decode(Artifact, msgspec.json.encode({"path": path, **FACT}), where="memory")
    for path in BELOW:
        assert inside(path) == path
        assert decode(Artifact, msgspec.json.encode({"path": path, **FACT}), where="memory").path == path
    assert not stays_below("caf\udce9")  # a file's name that is not UTF-8, as Python has it


ARTIFACT = {"path": "out/x", **FACT}
INPUT = {"source": "./x", "artifact": ARTIFACT, "value": "in/x"}
JOB = {
    "run": "20260101-000000-0000",
    "step": "s",
    "notebook": "n.ipynb",
    "inputs": {"x": INPUT},
    "outputs": {"y": "y.csv"},
}
RESULT = {"status": "succeeded", "started": "", "ended": "", "seconds": 1.0, "cells": 1, "cells_run": 1,
          "outputs": {"y": ARTIFACT}, "opened": {"helper.txt": {"sha256": "0" * 64}}}  # fmt: skip
VERSION = {"name": "m", "run": "20260101-000000-0000", "sha256": "a" * 64, "artifact": ARTIFACT, "created_by": "ana"}
STATE = {"name": "s", "notebook": "n.ipynb", "snapshot": {"notebook.ipynb": "0" * 64}, "job": JOB, "result": RESULT}
MANIFEST = {
    "run": "20260101-000000-0000", "pipeline_file": "pipeline.toml", "started_by": "ana", "started": "",
    "status": "succeeded",
    "pipeline": {"name": "p", "steps": {"s": {"notebook": "n.ipynb", "outputs": {"y": "y.csv"}}}}, "steps": [STATE],
    "sources": {"s.x": INPUT}, "champion": {"name": "m", "version": 1, "run": "r", "sha256": "a" * 64},
    "runner_version": "1",
    "environment": {"python": "3", "implementation": "c", "platform": "l", "cpus": 1, "packages": {}},
}  # fmt: skip
EVENT = {
    "seq": 1,
    "name": "m",
    "version": 1,
    "kind": "registered",
    "who": "",
    "at": "",
    "why": "",
    "previous": "",
    "hash": "",
}
SAMPLES: list[tuple[type[Any], dict[str, Any], list[tuple[Any, ...]]]] = [
    (Artifact, {**ARTIFACT, "files": {"a": FACT}}, [("path",), ("files", "a"), ("sha256",), ("files", "a", "sha256")]),
    (StepJob, JOB, [
        ("step",), ("outputs", "y"), ("inputs", "x"), ("inputs", "x", "value"), ("inputs", "x", "artifact", "path"),
    ]),
    (StepResult, RESULT, [("outputs", "y", "path"), ("opened", "helper.txt")]),
    (NewVersion, VERSION, [("name",), ("run",), ("sha256",), ("artifact", "path")]),
    (ModelVersion, {**VERSION, "version": 1, "status": "pending", "metrics": {}, "created": ""}, [
        ("name",), ("run",), ("artifact", "path"),
    ]),
    (Event, EVENT, [("name",)]),
    (RunManifest, MANIFEST, [
        ("run",), ("pipeline_file",), ("steps", 0, "name"), ("steps", 0, "snapshot", "notebook.ipynb"),
        ("sources", "s.x"), ("pipeline", "steps", "s"), ("pipeline", "steps", "s", "outputs", "y"),
        ("champion", "run"), ("champion", "name"),
    ]),
]  # fmt: skip


def with_name(value: Any, place: tuple[Any, ...], name: str) -> Any:
    """A JSON value with the text at `place`, or the key that leads to what is there, replaced."""
    (first, *rest) = place
    if rest:
        made = dict(value) if isinstance(value, dict) else list(value)
        made[first] = with_name(value[first], tuple(rest), name)
        return made
    if isinstance(value[first], str) and not (first.endswith((".ipynb", ".txt"))):
        return {**value, first: name}
    return {(name if key == first else key): inner for key, inner in value.items()}


def test_every_record_s_paths_and_names_are_checked_when_it_is_read() -> None:
    for kind, sample, its in SAMPLES:
        assert decode(kind, msgspec.json.encode(sample), where="memory")
        for place in its:
            for name in OUT:
                if name == "" and place == ("inputs", "x", "value"):  # of an input that is not there
                    continue
                with pytest.raises(Tampered, match="Expected"):
                    decode(kind, msgspec.json.encode(with_name(sample, place, name)), where="memory")


def test_a_newer_format_is_refused_and_a_deep_record_is_no_traceback() -> None:
    job = msgspec.json.decode(encode(StepJob(run="r", step="s", notebook="n")))
    with pytest.raises(NewerStore, match="format 99"):
        decode(StepJob, msgspec.json.encode({**job, "format": 99}), where="memory")
    with pytest.raises(NewerStore, match="format 99"):
        decode(StepJob, msgspec.json.encode({**job, "format": 99, "unheard_of": 1}), where="memory")
    deep = b'{"run": "r", "step": "s", "notebook": "n", "parameters": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    with pytest.raises(Tampered, match="not a readable StepJob"):
        decode(StepJob, deep, where="memory")


def test_a_folder_with_a_name_that_no_record_can_hold_is_refused_by_that_name(tmp_path: Path) -> None:
    for name in (b"line\nbreak.csv", b"caf\xe9.csv", b"Icon\r"):
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / os.fsdecode(name)).touch()
        with pytest.raises(UsageError, match="has a name that cannot be recorded") as said:
            artifact(folder, name="data")
        assert said.value.args[0].isprintable()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_a_step_that_writes_or_reads_such_names_ends_in_a_sentence(
    one_step: Callable[..., Done], project: Project
) -> None:
    (project.folder / "line\nbreak.txt").write_text("1")
    done = one_step("open('line\\nbreak.txt').read()")
    assert (done.code, "a name that cannot be recorded" in done.err) == (8, True), done.err
    writes = "import pathlib\nplace = pathlib.Path(out)\nplace.mkdir(exist_ok=True)\n(place / 'a\\nb').write_text('x')"
    project.write("nb.ipynb", parameters('x: int = 1\nout: str = ""'), writes)
    project.toml('name = "one"\n[steps.only]\nnotebook = "nb.ipynb"\noutputs = { out = "out/" }\n')
    done = project.runner("run")
    assert (done.code, "has a name that cannot be recorded" in done.err) == (3, True), done.err


def test_an_address_that_no_record_can_hold_is_refused_before_anything_runs(
    one_step: Callable[..., Done], project: Project
) -> None:
    project.write("nb.ipynb", parameters('table: str = ""'), "pass")
    project.toml('name = "p"\n[steps.s]\nnotebook = "nb.ipynb"\ninputs = { table = "https://host/a/../b.csv" }\n')
    done = project.runner("run")
    assert (done.code, "cannot be recorded" in done.err) == (2, True), done.err


def test_places_of_outputs_that_lead_out_are_findings_in_words(project: Project) -> None:
    project.write("nb.ipynb", parameters('table: str = ""'), "pass")
    for place in ("../x", "/x", "a/../../x", "C:/x", "a\\\\..\\\\x", "\\u0007"):
        project.toml(f'name = "p"\n[steps.s]\nnotebook = "nb.ipynb"\noutputs = {{ table = "{place}" }}\n')
        done = project.runner("check")
        assert (done.code, "must be a path below the step's output folder" in done.out + done.err) == (2, True), place
    project.toml('name = "p"\n[steps.s]\nnotebook = "nb.ipynb"\noutputs = { table = 1 }\n')
    done = project.runner("check")
    assert (done.code, "Expected a path as text, got 1" in done.out + done.err) == (2, True)
