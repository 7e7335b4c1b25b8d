"""Watching a target: what has changed, what has not, what cannot be said yet, and what follows from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.inboxes import web_inbox
from support.model_folders import records, saved
from support.monitored import ask, capture, customers, monitored
from support.projects import ROOT, Project

import runner.model
from runner import drift, escape
from runner.cli.monitor import at_target, pending_version
from runner.errors import PipelineError, Refused, UsageError
from runner.model.profile import REFERENCE, Counting, Profile, describe
from runner.model.signature import describe as columns_of
from runner.pipeline.file import load
from runner.project import Project as OpenProject
from runner.run.target_inputs import window_end
from runner.ui import model_pages
from runner.ui.view import View, minute


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return monitored(tmp_path_factory.mktemp("watched"))


def monitor(project: Project, *more: str) -> tuple[int, dict[str, Any]]:
    done = project.runner("monitor", "production", "--json", *more)
    assert done.out, done.err
    return done.code, done.json


@pytest.mark.soak
def test_what_is_as_it_was_passes_also_by_its_labels_and_is_pinned_and_cached(watched: Project) -> None:
    rows = customers(1000, 2)
    capture(watched, rows)
    rows[["phone", "left"]].to_csv(watched.folder / "left.csv", index=False)
    code, said = monitor(watched, "-p", "monitor.labels=./left.csv")
    assert (code, said["verdict"], said["target"]) == (0, "pass", "production")
    assert said["reasons"] == [{"what": "as it was", "why": "no column of 1,000 rows has moved"}]
    assert said["metrics"]["monitor.auc_loss"]["high"] < 0.04
    sources = watched.manifest["sources"]
    assert {key: fact["source"] for key, fact in sources.items()} == {
        "monitor.captured": "captured:production",
        "monitor.model": "deployed:production",
        "monitor.reference": "reference:production",
        "monitor.promised": "promised:production",
        "monitor.labels": str(watched.folder / "left.csv"),
    }
    assert sources["monitor.model"]["version"] == "tiny/1"
    assert sorted(sources["monitor.captured"]["artifact"]["files"]) == [
        "capture.json", "records.parquet", "requests.parquet",
    ]  # fmt: skip
    assert list(sources["monitor.reference"]["artifact"]["files"]) == ["table.parquet"]
    again, repeated = monitor(watched, "-p", "monitor.labels=./left.csv")
    assert (again, repeated["steps"][0]["status"]) == (0, "cached")
    shutil.rmtree(watched.folder / "runs" / "captured")
    # what was looked at stays with the run
    assert watched.runner("verify", "latest").code == 0
    done = watched.runner("reproduce", "latest", "--json")
    assert (done.code, done.json["same"]) == (0, ["monitor"]), done.out + done.err


def test_a_week_of_fifty_rows_is_inconclusive_and_trains_nothing(watched: Project) -> None:
    capture(watched, customers(50, 4))
    code, said = monitor(watched)
    assert (code, said["verdict"]) == (5, "inconclusive")
    assert said["reasons"][0]["what"] == "too few rows"
    assert "retrained" not in said


@pytest.mark.soak
def test_a_window_without_requests_and_a_target_that_serves_nothing_are_refused_with_what_to_do(
    watched: Project,
) -> None:
    done = watched.runner("monitor", "production", "--since", "1m")
    assert (done.code, "captured no request since" in done.err) == (8, True)
    assert "-p since=30d" in done.err
    done = watched.runner("monitor", "produktion")
    assert (done.code, "did you mean `production`?" in done.err) == (2, True)
    text = (watched.folder / "pipeline.toml").read_text()
    (watched.folder / "pipeline.toml").write_text(f'{text}[targets.other]\nkind = "local"\n')
    done = watched.runner("monitor", "other")
    assert (done.code, "Nothing is served at other" in done.err) == (8, True)


@pytest.mark.soak
def test_the_circle_from_a_no_to_a_version_that_has_learnt_what_changed(watched: Project) -> None:
    """It begins with `watched`: a run, and its approval."""

    def asked(*arguments: str) -> Any:
        done = watched.runner(*arguments, "--json")
        assert done.code == 0, done.out + done.err
        return done.json

    opened = OpenProject(watched.folder / "pipeline.toml")
    shutil.rmtree(watched.folder / "runs" / "captured", ignore_errors=True)
    place = asked("deploy", "tiny/1", "--to", "production")["place"]
    try:
        ask(place, customers(1000, 3).assign(minutes=lambda rows: rows["minutes"] * 1.3), "tiny/1", refused=1)
        (watched.folder / "day.txt").write_text("21 1.3")  # the newer data
        file = watched.folder / "monitor.toml"
        written = file.read_text()
        file.write_text(f'{written}[notify]\nto = "env:TELL"\n')
        with web_inbox() as inbox:  # and a second address, where nobody answers
            env = {"TELL": f"{inbox.address} json://127.0.0.1:1"}
            done = watched.runner("monitor", "production", "--json", "--since", "1d", env=env)
            (message,) = inbox.take()
        file.write_text(written)
        no = done.json
        assert (done.code, no["verdict"]) == (4, "fail")
        assert message["title"].startswith("tiny-monitor: drift. Not passed: ")
        assert f"look: runner show {no['run']}" in message["message"]
        notes = [line for line in done.err.splitlines() if line.startswith("note: Nobody")]
        assert notes == ["note: Nobody may have been told that this is drift: JSON not reached by one attempt of 4 s."]
        why = {reason["what"]: reason["why"] for reason in no["reasons"]}
        assert why["moved"].startswith("minutes: mean 1")
        assert why["refused"] == "1 of 21 requests"
        assert no["retrained"]["model_version"] == {"name": "tiny", "version": 2, "status": "pending"}
        trained = json.loads((watched.folder / "runs" / no["retrained"]["run"] / "run.json").read_text())
        assert trained["note"].startswith(f"production said no in {no['run']}: moved: minutes: mean 1")
        assert trained["tags"] == ["after-monitor-production"]
        assert pending_version(opened) == "tiny/2"  # so that the next no trains nothing
        assert trained["note"] in watched.runner("show", "tiny/2").out
        assert escape.html(trained["note"]) in model_pages.version(View(opened), "tiny", 2)
        (row,) = asked("deployments", "production")
        look = row["monitor"]
        assert (row["model"], look["run"], look["verdict"], look["model"]) == ("tiny/1", no["run"], "fail", "tiny/1")
        assert look["since"] < row["since"] < look["until"] < look["at"]
        assert {one["what"] for one in look["reasons"]} == why.keys()
        assert f"  moved: {why['moved']}" in watched.runner("deployments").out
        asked("site", str(watched.folder / "site"))
        site = (watched.folder / "site" / "targets" / "index.html").read_text()
        for page in (model_pages.targets(View(opened)), site):
            assert f"run/{no['run']}/" in page
            assert ("✗ failed" in page, escape.html(f"moved: {why['moved']}") in page) == (True, True)
            assert f"from {minute(look['since'])} to {minute(look['until'])}" in page

        asked("approve", "tiny/2", "--reason", "it knows the new minutes")
        assert pending_version(opened) is None
        place = asked("deploy", "tiny/2", "--to", "production")["place"]
        ask(place, customers(1000, 4).assign(minutes=lambda rows: rows["minutes"] * 1.3), "tiny/2")
        code, yes = monitor(watched)
        assert (code, yes["verdict"], "retrained" in yes) == (0, "pass", False)
        assert yes["metrics"]["monitor.rows"]["value"] == 2000
        (row,) = asked("deployments", "production")
        assert (row["model"], row["monitor"]["run"], row["monitor"]["verdict"]) == ("tiny/2", yes["run"], "pass")
    finally:
        watched.runner("undeploy", "production")


def test_a_file_that_watches_nothing_and_a_source_without_a_target_are_refused(tmp_path: Path) -> None:
    spec = load(ROOT / "pipeline.toml")
    with pytest.raises(UsageError, match=r"^No step of some\.toml has an input `captured:TARGET`"):
        at_target(spec, "production", Path("some.toml"))
    shipped = at_target(load(ROOT / "monitor.toml"), "staging", ROOT / "monitor.toml")
    assert shipped["monitor.captured"] == "captured:staging"
    assert set(shipped) == {f"monitor.{name}" for name in ("captured", "model", "reference", "promised")}
    file = tmp_path / "pipeline.toml"
    file.write_text('name = "x"\n[steps.a]\nnotebook = "a.ipynb"\ninputs = { b = "deployed:" }\n')
    with pytest.raises(PipelineError, match=r"names no target; write `deployed:TARGET`"):
        load(file)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("", ""),
        ("7d", "2026-11-22T12:00:00.000Z"),
        ("36h", "2026-11-28T00:00:00.000Z"),
        ("2 w", "2026-11-15T12:00:00.000Z"),
        ("2026-11-01T00:00+01:00", "2026-10-31T23:00:00.000Z"),
    ],
)
def test_a_window_ends_at_a_time_or_so_long_ago(written: str, meant: str) -> None:
    assert window_end(written, "monitor", "since", now=datetime(2026, 11, 29, 12, tzinfo=UTC)) == meant


def test_another_word_for_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match=r"-p monitor\.since='yesterday': write how long ago"):
        window_end("yesterday", "monitor", "since")


# What changes, and what does not


COLUMNS = columns_of(customers(10, 0).drop(columns=["phone", "left"]))
BEFORE = describe([customers(3000, 5)], COLUMNS)


def counted(rows: pd.DataFrame, reference: Profile = BEFORE) -> Profile:
    counting = Counting(reference)
    counting.add(rows)
    return counting.profile()


def compared(rows: pd.DataFrame, reference: Profile = BEFORE) -> dict[str, drift.Change]:
    return {change.column: change for change in drift.compare(reference, counted(rows, reference)).changes}


def test_windows_of_the_same_customers_raise_no_alarm_and_equal_windows_are_judged_equally() -> None:
    moved = [drift.compare(BEFORE, counted(customers(600, seed)), seed=seed).moved for seed in range(100, 130)]
    assert sum(map(bool, moved)) <= 3  # one in twenty is allowed, five would be expected once in a hundred times
    rows = customers(600, 6)
    assert drift.compare(BEFORE, counted(rows), seed=1) == drift.compare(BEFORE, counted(rows), seed=1)


def test_a_category_that_is_gone_a_new_one_and_a_missing_column_are_named() -> None:
    rows = customers(800, 7)
    gone = compared(rows[rows["plan"] != "silver"])["plan"]
    assert (gone.state, gone.why.startswith("no row has `silver` any more")) == ("moved", True)
    renamed = compared(rows.replace({"plan": {"silver": "platinum"}}))["plan"]
    assert "never seen before: `platinum`" in renamed.why
    missing = compared(rows.assign(minutes=None))["minutes"]
    assert (missing.state, missing.missing_before, missing.missing) == ("moved", 0.0, 1.0)
    assert "missing 0.0% → 100.0%" in missing.why
    assert {change.state for name, change in compared(rows).items()} == {"same"}


def test_a_change_that_is_sure_but_small_is_none_to_worry_about() -> None:
    rows = customers(60_000, 8)
    rows["minutes"] += 8
    change = compared(rows)["minutes"]
    assert (change.state, change.p < 0.05) == ("same", True)
    assert change.psi.high < 0.1


def test_few_rows_may_have_moved_and_more_of_the_same_have_not() -> None:
    assert {change.state for change in compared(customers(40, 9)).values()} <= {"may have moved", "same"}
    few = drift.compare(BEFORE, counted(customers(40, 9)))
    many = drift.compare(BEFORE, counted(customers(4000, 9)))
    assert (len(few.undecided) > 0, many.undecided) == (True, ())


def test_holm_adjusts_as_published_and_never_below_the_p_value() -> None:
    assert drift.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert drift.holm([]) == []
    assert drift.holm([0.6, 0.7]) == [1.0, 1.0]


def test_the_distances_are_what_their_definitions_say() -> None:
    before, now = np.array([50, 50]), np.array([25, 75])
    expected, observed = np.array([50.5, 50.5]) / 101, np.array([25.5, 75.5]) / 101
    assert drift.psi(before, now) == pytest.approx(((observed - expected) * np.log(observed / expected)).sum())
    assert drift.psi(before, before) == 0
    # all of the one at 0 to 1, all of the other at 2 to 3: two further on
    assert drift.wasserstein(np.array([0, 1, 2, 3]), np.array([9, 0, 0]), np.array([0, 0, 5])) == pytest.approx(2)
    shifted = compared(customers(3000, 5).assign(minutes=lambda rows: rows["minutes"] + 50))["minutes"]
    assert shifted.wasserstein is not None
    assert shifted.wasserstein.value == pytest.approx(1, abs=0.05)  # in standard deviations


def test_a_table_counted_in_parts_is_counted_as_a_whole() -> None:
    rows = customers(2500, 11).assign(plan=lambda made: made["plan"].where(made.index % 9 > 0))
    counting = Counting(BEFORE)
    for start in range(0, len(rows), 700):
        counting.add(rows[start : start + 700])
    whole, parts = counted(rows), counting.profile()
    assert parts.categories == whole.categories
    assert parts.numbers["minutes"].counts == whole.numbers["minutes"].counts
    assert parts.numbers["minutes"].std == pytest.approx(rows["minutes"].std(ddof=0))
    assert parts.categories["plan"].missing == rows["plan"].isna().sum()
    assert sum(whole.numbers["minutes"].counts) == 2500


def test_numbers_below_and_above_the_reference_have_bins_of_their_own() -> None:
    profile = counted(pd.DataFrame({"minutes": [-1e6, 1e9, np.inf, None, 180.0]}))
    minutes = profile.numbers["minutes"]
    assert (minutes.counts[0], minutes.counts[-1], minutes.missing) == (1, 1, 2)
    assert "plan" not in profile.categories


def test_a_classifier_tells_what_no_single_column_does() -> None:
    rows, other = customers(1500, 12), customers(1500, 13)
    rows["cost"], other["cost"] = 2 * rows["minutes"], 2 * other["minutes"].to_numpy()[::-1]
    columns = columns_of(rows[["minutes", "calls", "cost"]])
    told = drift.separation(rows, other, columns, threads=1)
    assert told is not None
    assert told.auc.low > 0.8
    assert set(told.columns[:2]) == {"minutes", "cost"}
    same = drift.separation(rows, rows.assign(minutes=customers(1500, 14)["minutes"])[["calls"]], columns, threads=1)
    assert same is not None
    assert same.auc.high < 0.6
    assert drift.separation(rows[:5], other, columns) is None


# Answers


def test_the_auc_is_scikit_learns_and_its_interval_holds_the_true_value() -> None:
    chance = np.random.default_rng(1)
    held = []
    for _ in range(200):
        answers = np.repeat([0, 1], [150, 50])
        scores = (answers + chance.normal(0, 1, 200)).round(1)  # true AUC 0.7602, with ties
        measured = drift.auc(answers, scores)
        assert measured is not None
        held.append(measured.low <= 0.7602 <= measured.high)
    assert measured.value == pytest.approx(roc_auc_score(answers, scores))
    assert 0.9 <= np.mean(held) <= 0.99
    assert drift.auc(np.zeros(9), np.arange(9)) is None


def test_a_loss_counts_both_intervals_and_its_direction() -> None:
    promised, now = drift.Interval(0.9, 0.88, 0.92), drift.Interval(0.8, 0.75, 0.85)
    lost = drift.loss(promised, now)
    assert (lost.value, lost.low, lost.high) == pytest.approx(
        (0.1, 0.1 - np.hypot(0.02, 0.05), 0.1 + np.hypot(0.02, 0.05))
    )
    assert drift.loss(promised, now, better="lower").value == pytest.approx(-0.1)
    fact = {"value": 0.9, "low": 0.88, "high": 0.93}
    narrower = drift.promise(fact, confidence=0.9)
    assert 0.88 < narrower.low < 0.9 < narrower.high < 0.93
    assert drift.promise({"value": 0.9, "low": None, "high": None}) == drift.Interval(0.9, 0.9, 0.9)


def test_a_share_is_sound_where_nothing_was_counted() -> None:
    assert drift.share(0, 0) == drift.Interval(0.0, 0.0, 0.0)
    none = drift.share(0, 50)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.0714, abs=0.001)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> runner.model.Model:
    return runner.model.load(saved(tmp_path_factory.mktemp("kept") / "model", reference=records(300).tail(180)))


def test_a_model_keeps_its_reference_in_equal_bytes_and_one_without_takes_rows(
    model: runner.model.Model, tmp_path: Path
) -> None:
    again = saved(tmp_path / "again", reference=records(300).tail(180))
    assert model.reference == runner.model.load(again).reference
    kept = drift.reference_of(model)
    assert (kept.rows, kept.scores["score"].rows) == (300, 180)
    bare = runner.model.load(saved(tmp_path / "bare"))
    assert not (tmp_path / "bare" / REFERENCE).exists()
    with pytest.raises(ValueError, match=r"has no reference\.json, and the rows of its run are not here"):
        drift.reference_of(bare)
    (tmp_path / "rows").mkdir()
    records(300).to_parquet(tmp_path / "rows" / "train.parquet")
    records(90).to_parquet(tmp_path / "rows" / "test.parquet")
    made = drift.reference_of(bare, tmp_path / "rows")
    assert (made.rows, made.scores["score"].rows) == (390, 90)


def window(folder: Path, **changes: Any) -> Path:
    """As `captured:TARGET` gives it: the first half by NAME/1, the rest by NAME/2."""
    folder.mkdir()
    rows = records(40)
    rows["plan"] = rows["plan"].astype("object")
    rows.insert(0, "version", ["a/1"] * 20 + ["a/2"] * 20)
    rows["score"] = np.linspace(0.1, 0.9, 40)
    rows["phone"] = [str(at % 30) for at in range(40)]
    rows.assign(**changes).to_parquet(folder / "records.parquet")
    times = pd.date_range("2026-11-28T23:00Z", periods=4, freq="h")
    errors = ["", "", "Row 3, plan: 'x' is unknown.", "Row 7, plan: 'x' is unknown."]
    pd.DataFrame(
        {"time": times, "status": [200, 500, 422, 422], "seconds": [0.1, None, 0.2, 0.3], "error": errors}
    ).to_parquet(folder / "requests.parquet")
    (folder / "capture.json").write_text('{"leave_out": ["roaming"], "hash": ["calls"]}')
    return folder


def test_a_window_is_read_with_its_requests_and_the_scores_of_the_version_alone(
    model: runner.model.Model, tmp_path: Path
) -> None:
    read = drift.read_window(window(tmp_path / "w"), model, drift.reference_of(model), version="a/2", sample_rows=10)
    assert (read.rows, read.versions, read.hidden) == (40, {"a/1": 20, "a/2": 20}, ("calls", "roaming"))
    assert (read.profile.scores["score"].rows, len(read.sample)) == (20, 10)
    assert list(read.sample.columns) == ["minutes", "plan"]
    assert set(read.profile.numbers) == {"minutes"}
    requests = read.requests
    assert requests is not None
    assert (requests.count, requests.refused, requests.failed) == (4, 2, 1)
    assert requests.errors == {"Row …, plan: 'x' is unknown.": 2}
    assert requests.days == {"2026-11-28": 1, "2026-11-29": 3}
    comparison = drift.compare(drift.reference_of(model), read.profile)
    assert set(comparison.not_compared) == {"calls", "roaming"}


def test_a_file_of_records_is_scored_by_the_model(model: runner.model.Model, tmp_path: Path) -> None:
    records(60).to_parquet(tmp_path / "rows.parquet")
    read = drift.read_window(tmp_path / "rows.parquet", model, drift.reference_of(model))
    assert (read.requests, read.profile.scores["score"].rows) == (None, 60)
    with pytest.raises(ValueError, match="neither a folder with"):
        drift.read_window(tmp_path / "none", model, drift.reference_of(model))


def test_answers_are_joined_by_key_to_the_last_score(model: runner.model.Model, tmp_path: Path) -> None:
    folder = window(tmp_path / "w")
    (tmp_path / "left.csv").write_text("phone,left\n3,yes\n25,no\n99,yes\n4,\n")
    answers = drift.read_answers(tmp_path / "left.csv", model)
    assert answers.to_dict() == {"3": 1, "25": 0, "99": 1}
    joined = drift.with_answers(folder, answers, model, key="phone")
    scores = np.linspace(0.1, 0.9, 40)
    assert joined.to_dict("list") == {"score": [scores[25], scores[33]], "answer": [0, 1]}
    of_first = drift.with_answers(folder, answers, model, key="phone", version="a/1")
    assert of_first.to_dict("list") == {"score": [scores[3]], "answer": [1]}
    assert drift.with_answers(folder, answers, model, key="calls").empty  # hashed
    (tmp_path / "bad.csv").write_text("phone,left\n3,yes\n4,perhaps\n5,maybe\n")
    with pytest.raises(ValueError, match="left: 'maybe' is neither 'yes' nor its opposite"):
        drift.read_answers(tmp_path / "bad.csv", model)


def test_nothing_served_is_refused_and_absent_where_the_input_is_optional(tmp_path: Path) -> None:
    from runner.model.registry import LocalRegistry
    from runner.run.target_inputs import serving

    with pytest.raises(Refused, match="Nothing is served at production, so there is nothing to watch"):
        serving(LocalRegistry(tmp_path / "registry.db"), "production")


MANY = """
import resource, sys
import runner.model
from runner import drift, escape
model = runner.model.load(sys.argv[1])
before = drift.reference_of(model)
window = drift.read_window(sys.argv[2], model, before, version="a/1")
assert window.rows == 10_000_000, window.rows
assert not drift.compare(before, window.profile).undecided
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.soak
def test_ten_million_captured_rows_are_read_in_two_gigabytes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = saved(tmp_path / "model", reference=records(300))
    window(tmp_path / "w")
    rows = records(100_000).assign(version="a/1", score=0.5, phone="1", id="0", status=200, seconds=0.1, error="")
    group = pa.Table.from_pandas(rows.assign(plan=rows["plan"].astype("object")))
    group = group.append_column("time", pa.array([0] * len(rows), pa.timestamp("ms", tz="UTC")))
    for name in ("records.parquet", "requests.parquet"):
        with pq.ParquetWriter(tmp_path / "w" / name, group.schema) as file:
            for _ in range(100):
                file.write_table(group)
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(folder), str(tmp_path / "w")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2048  # MiB
