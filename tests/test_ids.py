"""Runs are named in the order in which they began, whatever the clock says."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runner.run.ids import RUN_ID, make_folder


def test_many_runs_in_one_second_sort_as_they_began(tmp_path: Path) -> None:
    made = [make_folder(tmp_path) for _ in range(300)]
    assert made == sorted(set(made))
    assert all(RUN_ID.match(run) for run in made)


def test_a_clock_set_back_by_a_day_changes_no_order(tmp_path: Path) -> None:
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y%m%d-%H%M%S}"
    (tmp_path / f"{tomorrow}-ffff").mkdir()
    made = [make_folder(tmp_path) for _ in range(5)]
    assert made == sorted(made)
    assert made[0] > f"{tomorrow}-ffff"


def test_processes_that_begin_at_once_have_runs_of_their_own(tmp_path: Path) -> None:
    code = "import sys; from runner.run.ids import make_folder; [print(make_folder(sys.argv[1])) for _ in range(40)]"
    line = [sys.executable, "-c", code, str(tmp_path)]
    going = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = [run for process in going for run in process.communicate(timeout=60)[0].split()]
    assert len(made) == len(set(made)) == 160
