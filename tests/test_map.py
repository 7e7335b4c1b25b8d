"""A mapped step executes its notebook once for each key, keeps each on its own, and goes on with them as one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.projects import PAGES, Project, parameters, recorded

from runner.errors import PipelineError, UsageError
from runner.failpoint import VARIABLE
from runner.gate import judge
from runner.paths import stays_below
from runner.pipeline.mapping import INDEX, checked, folders
from runner.pipeline.plan import plan
from runner.records import KeyResult, Metric, Rule, encode

KEYS = ["north", "south", "east", "west", "up", "down"]
TOML = """
name = "tiny"
[steps.data]
notebook = "data.ipynb"
outputs = { regions = "regions.json", table = "t.txt" }
[steps.fit]
notebook = "fit.ipynb"
map = { region = "data.regions" }
inputs = { table = "data.table" }
outputs = { model = "m.txt", extra = "extra/" }
[steps.collect]
notebook = "collect.ipynb"
inputs = { models = "fit.model" }
outputs = { all = "all.json" }
"""
COLLECT = """
import json, pathlib
places = json.loads((pathlib.Path(models) / "keys.json").read_text())
found = {place["key"]: (pathlib.Path(models) / place["folder"] / "m.txt").read_text() for place in places}
pathlib.Path(all).write_text(json.dumps(found))
"""
FIT = """
import os, pathlib
open(model, "w").write(f"{region} of {open(table).read()}")
(pathlib.Path(extra) / "more.txt").write_text(str(region))
assert region not in %r and not os.path.exists(f"fail-{region}"), "no rows"
"""


def write(project: Project, keys: Sequence[Any] = KEYS, *, fails: str = "nothing", toml: str = TOML) -> Project:
    project.write(
        "data.ipynb",
        parameters("regions: str = ''\ntable: str = ''"),
        f"import json; open(regions, 'w').write(json.dumps({keys!r})); open(table, 'w').write('rows')",
    )
    project.write(
        "fit.ipynb",
        parameters("region: str = ''\ntable: str = ''\nmodel: str = ''\nextra: str = ''"),
        FIT % [fails],
        recorded("error", "len(region) / 10"),
    )
    project.write("collect.ipynb", parameters("models: str = ''\nall: str = ''"), COLLECT)
    project.toml(toml)
    return project


def lines(project: Project) -> dict[Any, Any]:
    return {key["key"]: key for key in project.step("fit")["result"]["mapped"]["keys"]}


def statuses(project: Project) -> dict[str, int]:
    return dict(Counter(key["status"] for key in lines(project).values()))


def collected(project: Project) -> Any:
    return json.loads((project.runs[-1] / "steps/collect/out/all.json").read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of six keys, with its pages."""
    project = write(Project(tmp_path_factory.mktemp("map")))
    done = project.runner("run", "-j", "2", env=PAGES)
    assert done.code == 0, done.err
    assert re.search(r"✓ fit +6 keys ", done.err), done.err
    return project


def test_each_key_is_executed_and_the_next_step_takes_the_folder_of_all(ran: Project) -> None:
    assert collected(ran) == {key: f"{key} of rows" for key in KEYS}
    assert list(lines(ran)) == KEYS, "in their own order"
    folder = ran.runs[0] / "steps/fit"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["notebook.ipynb", "modules", "job.json", "result.json", "in", "out", "keys"]
    )
    for key in KEYS:
        assert sorted(path.name for path in (folder / "keys" / key).iterdir()) == ["executed.ipynb", "state.json"]
        assert f'region = \\"{key}\\"' in (folder / "keys" / key / "executed.ipynb").read_text()
        assert (folder / "out/extra" / key / "more.txt").read_text() == key
        assert lines(ran)[key]["metrics"]["error"]["value"] == len(key) / 10
    results = [json.loads(path.read_text())["result"] for path in folder.glob("keys/*/state.json")]
    began = [result["started"] for result in results]
    at_once = max(sum(one["started"] <= moment < one["ended"] for one in results) for moment in began)
    assert at_once == 2, "as many as -j says"


@pytest.mark.soak
def test_the_run_is_sound_and_can_be_shown_reproduced_packed_and_imported(ran: Project, tmp_path: Path) -> None:
    assert ran.runner("verify", "--all").code == 0
    shown = ran.runner("show", "latest", "--json").json
    (fit,) = (step for step in shown["steps"] if step["name"] == "fit")
    assert [(key["key"], key["status"]) for key in fit["keys"]] == [(key, "succeeded") for key in KEYS]
    assert all(Path(key["executed"]).exists() for key in fit["keys"])
    assert re.search(r"north +succeeded +0\.5", ran.runner("show", "latest").out)
    page = (ran.runs[0] / "report.html").read_text()
    assert "Keys of fit" in page
    assert "steps/fit/keys/north/executed.ipynb" in page
    assert "6 of 6 keys succeeded" in ran.runner("show", "latest", "--md").out
    again = ran.runner("reproduce", "latest")
    assert again.code == 0, again.err
    assert ran.runner("pack", "latest", "-o", str(tmp_path / "run.tar.gz")).code == 0
    other = Project(tmp_path / "other")
    other.folder.mkdir()
    imported = other.runner("import", str(tmp_path / "run.tar.gz"))
    assert imported.code == 0, imported.err
    assert other.runner("verify", "--all").code == 0
    assert list(lines(other)) == KEYS


def test_an_altered_or_added_file_of_a_key_is_found(project: Project) -> None:
    write(project, KEYS[:2])
    assert project.runner("run").code == 0
    folder = project.runs[-1] / "steps/fit/keys"
    (folder / "north/added.txt").write_text("x")
    state = folder / "south/state.json"
    state.chmod(0o644)
    state.write_text(state.read_text().replace("0.5", "0.9"))
    done = project.runner("verify", "--all")
    assert done.code == 4
    assert "added.txt was added" in done.out + done.err
    assert "south/state.json was altered" in done.out + done.err


@pytest.mark.soak
def test_what_has_not_changed_is_not_run_again_key_by_key(project: Project) -> None:
    write(project, KEYS[:4])
    assert project.runner("run").code == 0
    done = project.runner("run")
    assert [project.step(name)["status"] for name in ("data", "fit", "collect")] == ["cached"] * 3, done.err
    assert project.runner("verify", "--all").code == 0
    write(project, ["up", *KEYS[:3]])
    assert "fit          maybe" in project.runner("run", "--dry-run").out, "its keys come from a step that runs"
    assert project.runner("run").code == 0
    assert statuses(project) == {"cached": 3, "succeeded": 1}
    assert list(collected(project)) == ["up", "north", "south", "east"]
    assert "region" in project.step("fit")["why"]
    assert project.runner("verify", "--all").code == 0
    assert project.runner("run", "--force").code == 0
    assert statuses(project) == {"succeeded": 4}
    # and after garbage collection what is kept still serves
    assert project.runner("gc", "--keep", "1").code == 0
    write(project, ["north", "west", "down"])
    assert project.runner("run").code == 0
    assert statuses(project) == {"cached": 1, "succeeded": 2}


def test_a_key_that_fails_ends_no_other_and_resume_runs_only_that(project: Project) -> None:
    write(project)
    for name in ("east", "up"):
        (project.folder / f"fail-{name}").touch()
    done = project.runner("run", env=PAGES)
    assert done.code == 3, done.err
    assert "2 of 6 keys failed: east: AssertionError: no rows; up: AssertionError: no rows" in done.out + done.err
    assert statuses(project) == {"succeeded": 4, "failed": 2}
    assert project.step("collect")["status"] is None
    folder = project.runs[-1]
    page = (folder / "report.html").read_text()
    assert page.index(">east<") < page.index(">north<"), "failures first"
    assert 'href="steps/fit/pages/east.html"' in page
    assert "no rows" in (folder / "steps/fit/pages/east.html").read_text()
    assert "east" in project.runner("show", "latest", "--md").out
    assert project.runner("verify", "--all").code == 0
    notebook = project.runner("debug", "latest", "fit", "--no-open").out.strip()
    assert "region = 'east'" in Path(notebook).read_text()
    assert "has no key 'upp'" in project.runner("debug", "latest", "fit/upp", "--no-open").err
    before = {key: (folder / "steps/fit/keys" / key / "state.json").stat().st_ino for key in KEYS}
    for name in ("east", "up"):
        (project.folder / f"fail-{name}").unlink()
    assert project.runner("resume", "latest", "--no-report").code == 0
    assert statuses(project) == {"succeeded": 6}
    after = {key: (folder / "steps/fit/keys" / key / "state.json").stat().st_ino for key in KEYS}
    assert [key for key in KEYS if before[key] != after[key]] == ["east", "up"]
    assert list(collected(project)) == KEYS
    assert project.runner("verify", "--all").code == 0


@pytest.mark.soak
def test_a_step_succeeds_with_the_share_of_keys_that_it_asks_for(project: Project) -> None:
    gate = (
        '[[gate]]\nmetric = "fit.error"\nmax = 0.5\nshare = 0.5\n[[gate]]\nmetric = "fit.error"\nmax = 0.5\neach = true'
    )
    toml = TOML.replace("map = {", "share = 0.8\nmap = {") + gate
    write(project, fails="east", toml=toml)
    done = project.runner("run", "--json")
    assert done.code == 5, "a key without a value leaves the rule for each undecided"
    assert [key for key, line in lines(project).items() if line["status"] == "failed"] == ["east"]
    assert list(collected(project)) == [key for key in KEYS if key != "east"]
    share, each = project.manifest["verdict"]["rules"]
    assert share["outcome"] == "pass"
    assert share["sentence"] == "fit.error <= 0.5 holds for 5 of 6 keys (83.3%); 50% must. Not for east (failed)."
    assert each["outcome"] == "error"
    assert project.runner("verify", "--all").code == 0
    assert project.runner("run", "--json").code == 5
    assert statuses(project) == {"cached": 5, "failed": 1}, "a step with failures is not taken as a whole"


@pytest.mark.cases(1)
@pytest.mark.parametrize("place", ["key ended:fit/south", "step sealed:fit"])
def test_a_run_that_is_killed_in_the_middle_goes_on_with_the_keys_that_are_missing(
    project: Project, place: str
) -> None:
    write(project, KEYS[:3])
    assert project.runner("run", env={VARIABLE: place}).code == -9
    ended = {path: path.stat().st_ino for path in project.runs[-1].glob("steps/fit/keys/*/state.json")}
    done = project.runner("resume", "latest")
    assert done.code == 0, done.err
    assert collected(project) == {key: f"{key} of rows" for key in KEYS[:3]}
    assert statuses(project) == {"succeeded": 3}
    assert {path: path.stat().st_ino for path in ended} == ended, "what had ended was not executed again"
    assert len(ended) == 3 or not place.startswith("step")
    assert project.runner("verify", "--all").code == 0


def test_keys_in_the_file_are_read_by_the_declared_type(project: Project) -> None:
    toml = (
        'name = "t"\n[steps.fit]\nnotebook = "fit.ipynb"\nmap = { depth = [1, 2, 10] }\noutputs = { out = "o.txt" }\n'
    )
    project.write("fit.ipynb", parameters("depth: float = 1.0  # 0 to 9\nout: str = ''"), "open(out, 'w').write('')")
    project.toml(toml)
    assert "10.0 is outside its range" in project.runner("check").err
    project.toml(toml.replace(", 10]", "]"))
    assert project.runner("run").code == 0
    project.toml(toml.replace("10]", "9]"))
    assert "1 of 3 keys: depth" in project.runner("run", "--dry-run").out
    assert project.runner("run").code == 0
    assert list(lines(project)) == [1.0, 2.0, 9.0]
    assert sorted(path.name for path in (project.runs[-1] / "steps/fit/keys").iterdir()) == ["1.0", "2.0", "9.0"]


HOSTILE = ["../../out", "", "a\\b", "<b>&", "\x1b[31m", "Ä", "NORTH", "north", "x" * 300, INDEX]


def test_hostile_keys_are_handed_over_as_they_are_and_get_tame_folders(project: Project) -> None:
    write(project, HOSTILE)
    done = project.runner("run", "-j", "2", env=PAGES)
    assert done.code == 0, done.err
    assert collected(project) == {key: f"{key} of rows" for key in HOSTILE}
    assert {path.name for path in (project.runs[-1] / "steps").iterdir()} == {"data", "fit", "collect"}
    page = (project.runs[-1] / "report.html").read_text()
    assert "<b>&" not in page
    assert "\x1b" not in page + project.runner("show", "latest").out
    assert project.runner("verify", "--all").code == 0


@given(st.lists(st.one_of(st.text(max_size=8), st.integers(), st.floats(allow_nan=False)), max_size=20, unique_by=repr))
def test_folders_of_any_keys_are_plain_and_differ_on_any_file_system(keys: list[Any]) -> None:
    made = folders(keys)
    assert len({name.casefold() for name in made}) == len(keys)
    for name in made:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,60}", name)
        assert stays_below(name)
        assert name not in (INDEX, ".", "..")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"a": 1}, "a dict, not a list"),
        ([], "an empty list"),
        (["a", "b", "a"], "has the key 'a' twice"),
        (["a", True], "a key is a text or a number"),
        (["a", None], "a key is a text or a number"),
        ([[1]], "a key is a text or a number"),
        ([float("nan")], "not a finite number"),
        (list(range(10_001)), "10,000 is the most"),
    ],
)
def test_what_is_no_list_of_keys_is_named(keys: Any, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        checked(keys, "data.regions", None)


def test_keys_that_cannot_be_read_fail_the_step(project: Project) -> None:
    write(project, {"north": 1})  # type: ignore[arg-type]
    done = project.runner("run")
    assert done.code == 8
    assert "steps.fit.map.region (data.regions) is a dict, not a list" in done.out + done.err
    assert project.runner("verify", "--all").code == 0
    assert project.manifest["status"] == "failed"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"data.regions"', '"data.region"', "step data has no output `region`; did you mean `regions`?"),
        ('"data.regions"', '"dat.regions"', "there is no step `dat`; did you mean `data`?"),
        ('"data.regions"', '"fit.model"', "a step cannot take its keys from itself"),
        ('"regions.json"', '"regions/"', "data.regions is a folder"),
        ("region =", "regions =", "does not declare it in its parameters cell; did you mean `region`?"),
        ("region =", "table =", "has more than one role"),
        ("map = {", "map = { x = ['a'],", "map names 2 parameters"),
        ("map = {", "share = 1.5\nmap = {", "share is 1.5; it is above 0"),
        ('inputs = { models = "fit.model" }', "share = 0.5", "there is no `map`"),
        ("[steps.collect]", '[[gate]]\nmetric = "fit.error"\nmax = 1\n[steps.collect]', "write `each = true`"),
        ("[steps.collect]", '[[gate]]\nmetric = "data.x"\nmax = 1\neach = true\n[steps.collect]', "has one value"),
        ("[steps.collect]", '[[gate]]\nmetric = "fit.error"\nmax = 1\neach = true\nshare = 0.1\n[steps.collect]', "take one"),
        ("[steps.collect]", '[model]\nname = "m"\nfrom = "fit.model"\n[steps.collect]', "has many models"),
    ],
)  # fmt: skip
def test_a_mistake_about_a_map_is_named_before_anything_runs(project: Project, old: str, new: str, said: str) -> None:
    write(project, toml=TOML.replace(old, new))
    with pytest.raises(PipelineError, match=re.escape(said)):
        plan(project.folder / "pipeline.toml")


def test_a_mapped_parameter_is_not_set_otherwise(project: Project) -> None:
    write(project)
    for name in ("region", "fit.region"):
        with pytest.raises(PipelineError, match="is mapped over it"):
            plan(project.folder / "pipeline.toml", overrides={name: "a"})


def test_a_second_try_executes_only_the_keys_that_failed(project: Project) -> None:
    write(project, KEYS[:3], toml=TOML.replace("map = {", "retries = 1\nmap = {"))
    project.write(
        "fit.ipynb",
        parameters("region: str = ''\ntable: str = ''\nmodel: str = ''\nextra: str = ''"),
        "import os, pathlib\nopen(model, 'w').write(region)\nopen(extra + '/x', 'w').write('')\n"
        "tries = pathlib.Path(f'tried-{region}').open('a'); tries.write('x'); tries.close()\n"
        "assert region != 'south' or os.path.getsize('tried-south') > 1",
    )
    done = project.runner("run")
    assert done.code == 0, done.err
    assert {key: (project.folder / f"tried-{key}").read_text() for key in KEYS[:3]} == {
        "north": "x", "south": "xx", "east": "x"
    }  # fmt: skip


@pytest.mark.soak
def test_a_run_that_is_stopped_keeps_the_keys_that_ended_through_garbage_collection(project: Project) -> None:
    keys = KEYS[:3]
    assert write(project, keys).runner("run", env={VARIABLE: "key ended:fit/south"}).code == -9
    ended = list(project.runs[-1].glob("steps/fit/keys/*/state.json"))
    assert project.runner("gc", "--keep", "1").code == 0
    assert project.runner("resume", "latest").code == 0
    assert all(path.stat().st_mtime < (project.runs[-1] / "steps/fit/result.json").stat().st_mtime for path in ended)
    assert statuses(project) == {"succeeded": 3}
    # another run takes each key from it, and diff names those whose metrics differ
    write(project, keys, toml=TOML)
    project.write(
        "fit.ipynb",
        parameters("region: str = ''\ntable: str = ''\nmodel: str = ''\nextra: str = ''"),
        FIT % [""],
        recorded("error", "len(region) / (10 if region != 'south' else 5)"),
    )
    assert project.runner("run").code == 0
    changed = project.runner("diff", project.runs[-2].name, "latest", "--json").json["metrics"]
    assert [(metric["name"], metric["after"]["value"]) for metric in changed] == [("fit.error[south]", 1.0)]


def test_what_is_not_mapped_is_written_as_it_was_before_there_were_maps() -> None:
    assert set(json.loads(encode(Rule(metric="fit.error", max=1)))) == {"metric", "min", "max", "confident", "when"}
    assert json.loads(encode(Rule(metric="fit.error", max=1, share=0.5)))["share"] == 0.5


def key(value: float | None, *, low: float | None = None, status: str = "succeeded", number: int = 0) -> KeyResult:
    high = None if low is None or value is None else 2 * value - low
    metrics = {} if value is None else {"error": Metric(value=value, low=low, high=high)}
    return KeyResult(key=number, folder=str(number), status=status, metrics=metrics)  # type: ignore[arg-type]


def outcome(keys: Sequence[KeyResult], **rule: Any) -> str:
    return judge({}, [Rule(metric="fit.error", max=0.5, **rule)], keyed={"fit": keys}).outcome


def test_a_rule_for_each_key_or_a_share_counts_the_keys_that_hold_it() -> None:
    assert outcome([key(0.1), key(0.5)], each=True) == "pass"
    assert outcome([key(0.1), key(0.6)], each=True) == "fail"
    assert outcome([key(0.1), key(0.6)], share=0.5) == "pass"
    assert outcome([key(0.1)] * 19 + [key(0.6)], share=0.95) == "pass"
    assert outcome([key(0.1)] * 18 + [key(0.6)] * 2, share=0.95) == "fail"
    assert outcome([key(0.1), key(None)], each=True) == "error"
    assert outcome([key(0.1), key(float("nan"))], each=True) == "error"
    assert outcome([key(0.1), key(None, status="failed")], share=0.5) == "pass"
    assert outcome([key(0.6), key(None)], share=1.0) == "fail", "what is missing cannot change it"
    assert outcome([key(0.45, low=0.3), key(0.1, low=0.0)], each=True, confident=True) == "inconclusive"
    assert outcome([], each=True) == "error"


VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=8)


@given(VALUES, st.floats(0.01, 1), st.integers(0, 7))
def test_a_better_key_never_turns_a_pass_into_another_outcome(
    values: list[float | None], share: float, at: int
) -> None:
    before = outcome([key(value) for value in values], share=share)
    better = [*values]
    better[at % len(values)] = 0.0
    after = outcome([key(value) for value in better], share=share)
    order = ["fail", "error", "inconclusive", "pass"]
    assert order.index(after) >= order.index(before)
    good = sum(value is not None and value <= 0.5 for value in values)
    assert (before == "pass") == (good >= share * len(values) - 1e-9)
