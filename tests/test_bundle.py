"""What is sent to a job: the same bytes under the same name, nothing secret, nothing large, nothing from elsewhere."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.projects import ROOT, program

from runner.aws.bucket import Bucket
from runner.aws.processing.bundle import Bundle, Ignored, bundle, code_bundle, runner_bundle, upload
from runner.aws.session import Session
from runner.errors import UsageError

SOURCE = b'{"cells": [], "nbformat": 4}'
KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(root, "queries/top.sql", "select 1")
    write(root, "queries/deep/low.sql", "select 2")
    write(root, "tools/clean.py", "x = 1\n")
    return root


def write(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def made(root: Path, **options: Any) -> Bundle:
    given_ = {"notebook": "nb.ipynb", "modules": {}, **options}
    return code_bundle(given_.pop("source", SOURCE), root=root, **given_)


# The same bytes


@given(st.dictionaries(st.text(min_size=1), st.binary(), min_size=1), st.randoms(use_true_random=False))
def test_the_order_in_which_files_are_found_changes_nothing(files: dict[str, bytes], chance: random.Random) -> None:
    items = list(files.items())
    chance.shuffle(items)
    assert bundle(dict(items)) == bundle(files)


@given(st.dictionaries(st.text(min_size=1), st.binary(), min_size=1), st.binary())
def test_other_bytes_or_another_path_are_another_bundle(files: dict[str, bytes], data: bytes) -> None:
    name = next(iter(files))
    assert bundle({**files, f"{name}2": data}).sha256 != bundle(files).sha256
    if data != files[name]:
        assert bundle({**files, name: data}).sha256 != bundle(files).sha256


def test_times_and_permissions_change_nothing(root: Path) -> None:
    options = {"include": ["queries"], "modules": {"tools/clean.py": root / "tools/clean.py"}}
    first = made(root, **options)
    os.utime(root / "queries/top.sql", (1, 1))
    (root / "tools/clean.py").chmod(0o755)
    assert made(root, **options) == first
    assert list(first.files) == [
        "modules/tools/clean.py", "notebook.ipynb", "project/queries/deep/low.sql", "project/queries/top.sql",
    ]  # fmt: skip
    assert first.files["notebook.ipynb"] == SOURCE
    assert first.size_bytes == sum(len(data) for data in first.files.values())


def test_the_bundle_of_this_package_runs_where_nothing_is_installed_of_it(tmp_path: Path) -> None:
    environment = {"python": "3.12", "pins": {"b": "2", "a": "1"}}
    first = runner_bundle(environment)
    assert first == runner_bundle(dict(reversed(environment.items())))
    assert first.sha256 != runner_bundle({"python": "3.11"}).sha256
    assert json.loads(first.files["environment.json"]) == environment
    assert first.files["_run.py"] == (ROOT / "runner" / "aws" / "processing" / "_run.py").read_bytes()
    with zipfile.ZipFile(io.BytesIO(first.files["runner.zip"])) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert "runner/report/templates/style.css" in names
    assert not any("__pycache__" in path or path.endswith(".pyc") for path in names)
    code = "import runner.step.execute; print(runner.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "runner" / "__init__.py"), done.stderr


# What is in it


def test_included_patterns_and_files_read_last_time_keep_their_places(root: Path) -> None:
    write(root, "data/one.csv", "1")
    write(root, "runs/r1/result.sql", "{}")
    found = made(root, include=["queries/*.sql", "**/low.*", "tools/"], also=["data/one.csv", "data/gone.csv"])
    assert [name for name in found.files if name.startswith("project/")] == [
        "project/data/one.csv",
        "project/queries/deep/low.sql",
        "project/queries/top.sql",
        "project/tools/clean.py",
    ]


def test_the_whole_project_can_be_included_without_what_no_job_needs(root: Path) -> None:
    for name in ("runs/r1/a.json", ".git/config", ".venv/bin/python", "tools/__pycache__/clean.pyc"):
        write(root, name, "x")
    found = made(root, include=["."])
    assert [name for name in found.files if name.startswith("project/")] == [
        "project/queries/deep/low.sql", "project/queries/top.sql", "project/tools/clean.py",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["absent/*.sql", "nothing"])
def test_a_pattern_that_matches_nothing_is_refused(root: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="matches nothing"):
        made(root, include=[pattern])


@pytest.mark.parametrize("options", [{"include": ["../other"]}, {"include": ["/etc/*"]}, {"also": ["../other.csv"]}])
def test_what_lies_outside_the_project_is_refused(root: Path, options: dict[str, list[str]]) -> None:
    write(root.parent, "other.csv", "1")
    with pytest.raises(UsageError, match=r"(outside|leaves) the project"):
        made(root, **options)


@pytest.mark.parametrize(
    ("patterns", "out", "kept"),
    [
        ("*.csv", ["a.csv", "deep/b.csv"], ["a.csv.txt"]),
        ("/a.csv", ["a.csv"], ["deep/a.csv"]),
        ("deep/*.csv", ["deep/a.csv"], ["deep/er/a.csv", "x/deep/a.csv"]),
        ("raw/", ["raw/a", "x/raw/a"], ["raw"]),
        ("**/raw/*.csv", ["raw/a.csv", "x/y/raw/a.csv"], ["raw/x/a.csv"]),
        ("raw/**", ["raw/a", "raw/b/c"], ["x/raw/a"]),
        ("a?.[ch]", ["ab.c", "x/ab.h"], ["a.c", "ab.d"]),
        ("a[!b]c", ["axc"], ["abc"]),
        ("*.csv\n!keep.csv", ["a.csv"], ["keep.csv", "x/keep.csv"]),
        ("raw/\n!raw/keep.csv", ["raw/keep.csv"], []),
        ("# a.csv\n\n\\#b.csv", ["#b.csv"], ["a.csv"]),
        ("a+(b).csv", ["a+(b).csv"], ["aab.csv"]),
        ("\\*\n/a/\\?", ["*", "x/*", "a/?"], ["b", "a/b"]),
        ("\\!b.csv", ["!b.csv"], ["b.csv"]),
        ("/a\n!b.csv", ["a/b.csv"], ["b.csv"]),
    ],
)
def test_the_ignore_file_keeps_out_what_git_would(
    tmp_path: Path, patterns: str, out: list[str], kept: list[str]
) -> None:
    write(tmp_path, ".runnerignore", patterns)
    write(tmp_path, ".gitignore", patterns)
    ignored = Ignored(tmp_path)
    assert [path for path in out if not ignored(path)] == []
    assert [path for path in kept if ignored(path)] == []
    subprocess.run([program("git"), "init", "--quiet", str(tmp_path)], check=True)
    asked = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", *out, *kept]
    assert subprocess.run(asked, capture_output=True, text=True).stdout.splitlines() == out


def test_the_ignore_file_is_honoured_and_not_sent(root: Path) -> None:
    write(root, ".runnerignore", "deep/\n/tools\n")
    found = made(root, include=["."], also=["tools/clean.py"])
    assert [name for name in found.files if name.startswith("project/")] == ["project/queries/top.sql"]


def test_a_pattern_that_cannot_be_read_is_named(root: Path) -> None:
    write(root, ".runnerignore", "[z-a]\n")
    with pytest.raises(UsageError, match=r"\[z-a\]"):
        made(root, include=["."])


# What is refused


@pytest.mark.parametrize(
    "name", [".env", ".env.local", "certs/server.PEM", "id_rsa", "aws/credentials", ".netrc", "a.key"]
)
def test_a_file_named_like_secrets_is_refused_with_how_to_leave_it_out(root: Path, name: str) -> None:
    write(root, f"queries/{name}", "x")
    with pytest.raises(UsageError) as refused:
        made(root, include=["queries"])
    said = str(refused.value)
    assert said.startswith(f"queries/{name} is named like")
    assert f"`/queries/{name}` in .runnerignore" in said
    write(root, ".runnerignore", f"/queries/{name}\n")
    assert f"project/queries/{name}" not in made(root, include=["queries"]).files


def test_a_credential_in_a_file_a_module_or_the_notebook_is_refused_by_its_kind(root: Path) -> None:
    path = write(root, "queries/settings.txt", f"key = {KEY}")
    with pytest.raises(UsageError, match=r"queries/settings\.txt has in it .*AWS access key id.*\.runnerignore"):
        made(root, include=["queries"])
    with pytest.raises(UsageError, match=r"^settings\.txt has in it .*secret parameter"):
        made(root, modules={"settings.txt": path})
    with pytest.raises(UsageError, match=r"^notebooks/a\.ipynb has in it .*secret parameter") as refused:
        made(root, source=KEY.encode(), notebook="notebooks/a.ipynb")
    assert KEY not in str(refused.value)


def test_what_is_no_text_is_not_searched(root: Path) -> None:
    write(root, "queries/picture.png", b"\x89PNG\0" + KEY.encode())
    assert "project/queries/picture.png" in made(root, include=["queries"]).files


def test_more_than_fifty_megabytes_are_refused_naming_the_five_biggest(root: Path) -> None:
    for number in range(1, 7):
        with write(root, f"queries/part{number}.bin", b"\0").open("r+b") as file:
            file.truncate(number * 4_000_000)
    with pytest.raises(UsageError) as refused:
        made(root, include=["queries"])
    said = str(refused.value)
    assert "84.0 MB; a job takes 50 MB" in said
    assert "queries/part6.bin (24.0 MB), queries/part5.bin (20.0 MB)" in said
    assert "part2" in said
    assert "part1" not in said


def test_links_that_leave_the_project_or_lead_nowhere_are_refused(root: Path) -> None:
    outside = write(root.parent, "outside.txt", "secret")
    link = root / "queries" / "link.txt"
    for target in (outside, root / "absent", link):
        link.symlink_to(target)
        with pytest.raises(UsageError, match=r"link\.txt"):
            made(root, include=["queries"])
        with pytest.raises(UsageError, match=r"link\.txt"):
            made(root, modules={"link.txt": link})
        link.unlink()
    link.symlink_to(root / "tools" / "clean.py")
    assert made(root, include=["queries"]).files["project/queries/link.txt"] == b"x = 1\n"


def test_modules_may_lie_in_a_run_folder_outside_the_project(root: Path) -> None:
    copied = write(root.parent, "runs/r1/modules/clean.py", "x = 1")
    assert made(root, modules={"clean.py": copied}).files["modules/clean.py"] == b"x = 1"


def test_links_to_folders_and_pipes_are_refused(root: Path) -> None:
    folder = root / "queries" / "folder"
    folder.symlink_to(root / "tools")
    with pytest.raises(UsageError, match="link to a folder"):
        made(root, include=["queries"])
    folder.unlink()
    os.mkfifo(folder)
    with pytest.raises(UsageError, match="not a regular file"):
        made(root, include=["queries"])


# In the bucket


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield Session("us-east-1", patience_s=5)
    server.stop()


def test_a_bundle_is_moved_once(session: Session) -> None:
    session.call("s3", "create_bucket", about="once", Bucket="once")
    bucket = Bucket(session, "once", "project/")
    sent = runner_bundle({"pins": {}})
    key, moved = upload(bucket, "bundles/", sent)
    assert (key, moved) == (f"bundles/{sent.sha256}/", sent.size_bytes)
    assert upload(bucket, "bundles/", sent) == (key, 0)
    assert dict(bucket.keys(key)) == {key + name: len(data) for name, data in sent.files.items()}


def test_an_upload_that_broke_off_is_done_again(session: Session, root: Path) -> None:
    session.call("s3", "create_bucket", about="again", Bucket="again")
    bucket = Bucket(session, "again")
    sent = made(root, include=["queries"])
    key, _ = upload(bucket, "steps/", sent)
    session.call("s3", "delete_object", about="last", Bucket="again", Key=f"{key}notebook.ipynb")
    bucket.put(f"{key}project/queries/top.sql", b"half")
    assert upload(bucket, "steps/", sent) == (key, sent.size_bytes)
    assert bucket.get(f"{key}project/queries/top.sql") == b"select 1"
