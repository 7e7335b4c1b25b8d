"""What a machine, a shell or a file system does not give is said in a sentence, or done without.

Readers that leave, closed streams, text that is not UTF-8, files nested without end, no locks, links or modes, a small
stack.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.commands import Done, command, environment
from support.projects import Project, notebook, parameters, program, recorded
from support.some import some

TOML = """
name = "tiny"
[steps.a]
notebook = "a.ipynb"
inputs = { source = "./in.csv", folder = "./in" }
outputs = { table = "t.csv" }
[steps.b]
notebook = "b.ipynb"
inputs = { table = "a.table" }
[[gate]]
metric = "b.rows"
min = 1
"""


@pytest.fixture
def tiny(project: Project) -> Project:
    (project.folder / "in").mkdir()
    (project.folder / "in" / "part").write_text("p")
    (project.folder / "in.csv").write_text("a\n1\n")
    project.write(
        "a.ipynb",
        parameters('source: str = ""\nfolder: str = ""\ntable: str = ""'),
        "import pathlib\npathlib.Path(table).write_text(open(source).read() + open(f'{folder}/part').read())",
    )
    project.write("b.ipynb", parameters('table: str = ""'), recorded("rows", "len(open(table).readlines())"))
    project.toml(TOML)
    return project


def in_shell(project: Project, line: str, **variables: str) -> tuple[list[int], str]:
    """(the exit codes of a pipe's commands, what it printed); `runner` is the command."""
    script = f'runner() {{ {shlex.join(command())} "$@"; }}\n{line}\necho "codes ${{PIPESTATUS[@]}}"'
    done = subprocess.run(
        [program("bash"), "-c", script], cwd=project.folder, env=environment(variables), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    said, _, codes = done.stdout.rpartition("codes ")
    return [int(code) for code in codes.split()], said + done.stderr


# readers that leave


@pytest.mark.soak
def test_a_run_whose_reader_leaves_is_one_run_that_goes_on_to_its_end(tiny: Project) -> None:
    codes, said = in_shell(tiny, "runner run 2>&1 | head -1", RUNNER_NO_REPORT="0")
    assert (codes, len(said.splitlines())) == ([0, 0], 1), said
    assert [(tiny.manifest["status"], len(tiny.runs))] == [("succeeded", 1)]
    assert (tiny.runs[0] / "report.html").exists()
    for count, line in enumerate(
        ("runner run 2>&1 | head -1", "runner run --json | true", "runner run 2>&1 | true"), 2
    ):
        codes, said = in_shell(tiny, line)
        assert (codes, len(tiny.runs)) == ([0, 0], count), said
        assert "Error" not in said
    tiny.toml(TOML.replace("min = 1", "min = 9"))
    assert in_shell(tiny, "runner run 2>&1 | true") == ([4, 0], "")  # the exit code is the run's
    assert (tiny.manifest["verdict"]["outcome"], len(tiny.runs)) == ("fail", 5)
    assert {json.loads((run / "run.json").read_text())["status"] for run in tiny.runs} == {"succeeded"}


@pytest.mark.soak
def test_every_command_ends_quietly_and_with_its_own_code_where_its_reader_leaves(tiny: Project) -> None:
    assert tiny.runner("run").code == 0
    for line in ("runs", "show latest", "check", "verify --all", "run --help", "gc --dry-run", "diff latest latest"):
        assert in_shell(tiny, f"runner {line} 2>&1 | true") == ([0, 0], ""), line
    output = tiny.runs[0] / "steps" / "a" / "out" / "t.csv"
    output.chmod(0o644)
    output.write_text("altered")
    assert in_shell(tiny, "runner verify --all 2>&1 | true") == ([4, 0], "")


@pytest.mark.soak
def test_closed_and_full_streams_make_no_second_run(tiny: Project) -> None:
    for count, line in enumerate(("runner run >&- 2>&-", "runner run >&- 2>&-", "runner run --json 2>&-"), 1):
        codes, said = in_shell(tiny, line, RUNNER_NO_REPORT="0")
        assert (codes, len(tiny.runs)) == ([0], count), said
    for count in (4, 5):  # the ordinary way, then the one back
        codes, said = in_shell(tiny, "runner run --tag full > /dev/full")
        assert (codes, len(tiny.runs)) == ([8], count)
        assert "No space left on device: while writing" in said
        assert tiny.manifest["status"] == "succeeded"


# text that is not UTF-8


BROKEN = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", f"x={BROKEN}"], ["run", BROKEN], ["run", "--tag", BROKEN], ["run", "-m", BROKEN],
        ["run", "--profile", BROKEN], ["check", "--pipeline", f"{BROKEN}.toml"], ["show", BROKEN], [BROKEN],
        ["approve", f"{BROKEN}/1", "--reason", "x"], ["approve", "a/1", "--reason", BROKEN], ["models", BROKEN],
        ["import", f"{BROKEN}.tar.gz"], ["predict", "a", f"{BROKEN}.csv"], ["open", BROKEN], ["diff", BROKEN, "latest"],
    ],
    ids=lambda words: words[0].encode(errors="replace").decode(),
)  # fmt: skip
def test_an_argument_that_is_not_utf_8_is_named(tiny: Project, words: Sequence[str]) -> None:
    done = tiny.runner(*words)
    assert (done.code, "Traceback" in done.err) == (2, False), done.err
    assert "caf\\xe9" in done.err
    assert "is not UTF-8. Give it as UTF-8, or rename the file it names." in done.err
    assert not tiny.runs


def test_a_folder_or_a_file_whose_name_is_not_utf_8_is_named(tiny: Project) -> None:
    elsewhere = Project(tiny.folder.with_name(BROKEN))
    shutil.copytree(tiny.folder, elsewhere.folder)
    done = elsewhere.runner("run")
    assert (done.code, "The name of this folder, '/" in done.err, "Traceback" in done.err) == (2, True, False)
    (tiny.folder / "in" / BROKEN).write_text("x")
    done = tiny.runner("run")
    assert (done.code, "has a name that cannot be recorded" in done.err, "Traceback" in done.err) == (2, True, False)


def test_variables_that_are_not_utf_8_around_a_run_do_not_stop_it(tiny: Project) -> None:
    (tiny.folder / BROKEN).write_text("x")
    done = tiny.runner("run", "--json", env={"LANG": BROKEN, "TZ": BROKEN, "UNRELATED": BROKEN})
    assert done.code == 0, done.err
    assert tiny.manifest["environment"]["variables"]["TZ"] == "caf\\udce9"
    assert tiny.runner("verify", "--all").code == 0


def test_a_project_module_in_another_encoding_is_a_module_like_any_other(tiny: Project) -> None:
    (tiny.folder / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nimport json\nname = 'caf\xe9'\n")
    tiny.write("b.ipynb", parameters('table: str = ""'), "import latin", recorded("rows", "len(latin.name)"))
    done = tiny.runner("run", "--json")
    assert (done.code, done.json["metrics"]["b.rows"]["value"]) == (0, 4), done.err
    (tiny.folder / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nimport json\nname = '\xe9'\n")
    assert tiny.runner("run", "--json").json["metrics"]["b.rows"]["value"] == 1
    assert tiny.runner("diff", tiny.runs[0].name, "latest").code == 0


# nested without end


@pytest.mark.parametrize("depth", [150, 100_000])
def test_a_pipeline_file_nested_without_end_is_an_error_in_it(tiny: Project, depth: int) -> None:
    for deep in ("[" * depth + "]" * depth, "{ x = " * depth + "1" + " }" * depth):
        tiny.toml(f"parameters = {{ x = {deep} }}\n" + TOML)
        for words in (("check",), ("run",), ("runs",)):
            done = tiny.runner(*words)
            # what declares a parameter is not asked by `runs`
            read = 0 if depth == 150 and words == ("runs",) else 2
            assert (done.code, "Traceback" in done.err) == (read, False), done.err[-500:]
            assert len(done.err) < 4000


@pytest.mark.parametrize("depth", some([900, 100_000], [900]))
def test_a_notebook_nested_without_end_is_a_sentence_or_runs(tiny: Project, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    cells = (parameters('table: str = ""'), recorded("rows", "3"))
    document = json.dumps(notebook(*cells))
    for made in (
        document.replace('"metadata": {}', f'"metadata": {{"x": {deep}}}', 1),
        document.replace('"source": "', f'"source": {deep}, "was": "', 1),
        json.dumps(notebook(*cells, f"x = {deep}")),
    ):
        (tiny.folder / "b.ipynb").write_text(made)
        for words in (("check",), ("run",)):
            done = tiny.runner(*words)
            assert done.code in (0, 2, 3), (done.code, done.err[-1500:])
            assert "Traceback" not in done.err, done.err[-1500:]
            assert len(done.err) < 4000
        cleaned = subprocess.run(
            command("clean-notebook"), input=made.encode(), env=environment(), capture_output=True, check=True
        )
        assert not cleaned.stderr


# what a file system does not have


X86 = {"flock": [73], "symlink": [88, 266], "link": [86, 265], "chmod": [90, 268, 452], "socket": []}
ARM = {"flock": [32], "symlink": [36], "link": [37], "chmod": [53, 452], "socket": []}
CALLS = {"x86_64": (0xC000003E, X86), "aarch64": (0xC00000B7, ARM)}
# seccomp(2): each of these system calls fails with the error, in this process and all that it starts
LACKING = """
import ctypes, os, struct, sys
arch, error, count = map(int, sys.argv[1:4])
calls, words = list(map(int, sys.argv[4:4 + count])), sys.argv[4 + count:]
def line(code, true, false, k): return struct.pack("HBBI", code, true, false, k)
program = [line(0x20, 0, 0, 4), line(0x15, 1, 0, arch), line(0x06, 0, 0, 0x7FFF0000), line(0x20, 0, 0, 0)]
for number in calls:
    program += [line(0x15, 0, 1, number), line(0x06, 0, 0, 0x00050000 | error)]
program.append(line(0x06, 0, 0, 0x7FFF0000))
code = b"".join(program)
buffer = ctypes.create_string_buffer(code)
filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.addressof(filter_), 0, 0):
    sys.exit("no seccomp: " + os.strerror(ctypes.get_errno()))
os.execv(words[0], words)
"""


def lacking(project: Project, error: int, calls: Sequence[str], *words: str) -> Done:
    """The command where these system calls fail, as on a file system that does not have what they do."""
    if platform.machine() not in CALLS or not sys.platform.startswith("linux"):
        pytest.skip(f"the numbers of system calls are not known for {sys.platform} on {platform.machine()}")
    arch, numbers = CALLS[platform.machine()]
    refused = [str(number) for name in calls for number in numbers[name]]
    done = subprocess.run(
        [sys.executable, "-c", LACKING, str(arch), str(error), str(len(refused)), *refused, *command(*words)],
        cwd=project.folder, env=environment({"RUNNER_NO_REPORT": "0"}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.stderr.startswith("no seccomp: "):
        pytest.skip(f"system calls cannot be filtered here: {done.stderr.strip()}")
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.soak
def test_without_locks_a_run_is_refused_and_what_is_there_can_be_looked_at(tiny: Project) -> None:
    assert tiny.runner("run").code == 0
    for error in (38, 37, 95):  # ENOSYS, ENOLCK, EOPNOTSUPP
        for words in (("run",), ("run", "--force"), ("resume", "latest"), ("gc",)):
            done = lacking(tiny, error, ["flock"], *words)
            assert (done.code, "Traceback" in done.err) == (8, False), done.err
            assert "which this file system does not have; move the project to a disk that has them" in done.err
    for words in (("runs",), ("show", "latest"), ("verify", "--all"), ("check",)):
        done = lacking(tiny, 38, ["flock"], *words)
        assert done.code == 0, done.err
    done = lacking(tiny, 38, ["flock"], "doctor")
    assert (done.code, "Traceback" in done.err) == (2, False)
    assert "a disk of your own that has links and locks" in done.out


@pytest.mark.soak
def test_without_links_and_modes_a_run_is_as_any_other(tiny: Project) -> None:
    done = lacking(tiny, 1, ["symlink", "link", "chmod"], "run", "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"]["b.rows"]["value"] == 3
    assert Path(done.json["report"]).exists()
    for _ in range(2):  # the ordinary way, then the one back
        again = lacking(tiny, 1, ["symlink", "link", "chmod"], "run", "--json")
        assert [step["status"] for step in again.json["steps"]] == ["cached", "cached"], again.err
    assert lacking(tiny, 1, ["symlink", "link", "chmod"], "verify", "--all").code == 0
    (tiny.folder / "in" / "part").write_text("changed")
    done = tiny.runner("run", "--json")
    assert [step["status"] for step in done.json["steps"]] == ["succeeded", "succeeded"]


def test_a_source_that_a_step_changes_is_noticed_where_it_was_copied(tiny: Project) -> None:
    source = tiny.folder / "in.csv"
    tiny.write(
        "a.ipynb",
        parameters('source: str = ""\nfolder: str = ""\ntable: str = ""'),
        "open(source, 'a').write('more')\nopen(table, 'w').write('x')",
    )
    done = lacking(tiny, 1, ["symlink"], "run")
    assert (done.code, "`source`" in done.err + done.out, source.read_text()) == (3, True, "a\n1\n"), done.err


def test_a_machine_out_of_files_is_a_sentence(tiny: Project) -> None:
    done = subprocess.run(
        command("run"), cwd=tiny.folder, env=environment(), capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)),
    )  # fmt: skip
    assert (done.returncode != 0, "Traceback" in done.stderr) == (True, False), done.stderr


# a small stack


def test_a_stack_that_is_too_small_is_said_wherever_python_itself_can_start(tiny: Project) -> None:
    said = 0
    for limit_kb in (64, 72, 96, 128, 256, 511):
        here = f"ulimit -s {limit_kb}; "
        line = shlex.join(command("run"))
        starts = subprocess.run(
            [program("bash"), "-c", f"{here}{shlex.quote(sys.executable)} -m json.tool --help > /dev/null"], check=False
        )
        if starts.returncode == 0:  # below, it is Python that ends before a line of ours is read
            done = subprocess.run(
                [program("bash"), "-c", here + line], cwd=tiny.folder, env=environment(), capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert done.returncode == 2, (limit_kb, done.returncode, done.stderr)
            assert f"The stack is limited to {limit_kb} kB, and Python needs 512 kB" in done.stderr
            assert "ulimit -s 8192" in done.stderr
            said += 1
    assert said >= 3
    codes, out = in_shell(tiny, "ulimit -s 512; runner run")
    assert codes == [0], out
