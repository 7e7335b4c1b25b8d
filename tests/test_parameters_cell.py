"""What a parameters cell declares, in Python and in other languages, and what a notebook file may look like."""

from __future__ import annotations

import gc
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.commands import Done
from support.projects import Project, code, notebook, parameters, text

from runner.errors import PipelineError
from runner.notebook.parameters import declared, syntax_tree
from runner.notebook.source import imported_names, python_source, read_notebook
from runner.pipeline.plan import plan

ONE = 'name = "p"\n[steps.s]\nnotebook = "n.ipynb"\n'


def found(project: Project, cell: str, toml: str = "", **overrides: str) -> str:
    """The findings and warnings about a notebook with that parameters cell."""
    project.write("n.ipynb", parameters(cell), "print('ran')")
    project.toml(ONE + toml)
    try:
        return "\n".join(plan(project.folder / "pipeline.toml", overrides=overrides).warnings)
    except PipelineError as error:
        return str(error)


@pytest.mark.parametrize(
    "cell",
    [
        "from enum import Enum\nMode = Enum('Mode', 'FAST')\nfrom typing import Literal\nx: Literal[Mode.FAST] = Mode.FAST",
        "x = {[1]: 2}",
        "x: {[1]: 2} = 1",
        "%matplotlib inline\nx = 1",
        "%%time\nx = 1",
        "files = !ls\nx = 1",
        "x = 1\nx?",
        "x = '''\n%not a magic\n'''",
    ],
)
def test_what_a_cell_says_beside_plain_values_does_not_stop_its_parameters(project: Project, cell: str) -> None:
    assert found(project, cell) == ""
    assert "x" in read_notebook(project.folder / "n.ipynb").parameters
    assert found(project, cell, "parameters = { y = 1 }").count("does not declare it") == 1


def test_a_default_with_a_line_like_a_magic_is_kept() -> None:
    cells, rest = declared("x = '''\n%not a magic\n'''", "python", Path("n.ipynb"))
    assert cells["x"].default == "\n%not a magic\n"
    assert rest == ""


def test_dates_of_toml_arrive_as_text_and_other_findings_stay_true(project: Project) -> None:
    cell = "day: str = '2024-01-01'\nn: int = 1"
    assert found(project, cell, "parameters = { day = 2024-02-01 }") == (
        "day is '2024-01-01' in n.ipynb, '2024-02-01' in pipeline.toml; this run uses '2024-02-01'."
    )
    assert "'2024-02-01' does not fit int, declared in n.ipynb." in found(
        project, cell, "parameters = { n = 2024-02-01 }"
    )


def test_a_value_of_the_wrong_type_hides_neither_the_step_nor_its_other_faults(project: Project) -> None:
    said = found(project, "x = 1", 'timeout_s = "long"\nretries = "2"\nafter = ["t"]')
    assert "steps.s.timeout_s: Expected `float | null`, got `str`." in said
    assert "steps.s.retries: Expected `int`, got `str`." in said
    assert "steps.s.after: there is no step `t`" in said
    assert "there are no steps" not in said


def test_a_type_that_was_guessed_is_said_to_be(project: Project) -> None:
    assert found(project, "alpha = 0", alpha="0.5") == (
        "-p alpha: '0.5' does not fit int, inferred from `alpha = 0` in n.ipynb; write `0.0` or `alpha: float`."
    )
    assert found(project, "alpha: int = 0", alpha="0.5") == "-p alpha: '0.5' does not fit int, declared in n.ipynb."


@pytest.mark.parametrize("text_", ["inf", "-Infinity", "nan", "1e999"])
def test_a_number_without_end_gets_the_same_sentence_from_the_command_line(project: Project, text_: str) -> None:
    said = "is not a finite number, so it does not fit float, declared in n.ipynb."
    assert said in found(project, "x: float = 0.5", x=text_)


@pytest.mark.parametrize(
    ("comment", "secret"),
    [
        ("secret", True), ("Secret, of the shop", True), ("secret: of the shop", True), ("secret sauce name", False),
        ("secretary", False), ("the secret", False),
    ],
)  # fmt: skip
def test_only_the_word_by_itself_marks_a_secret(comment: str, secret: bool) -> None:
    cells, _ = declared(f"x: str = ''  # {comment}", "python", Path("n.ipynb"))
    assert cells["x"].secret == secret


@pytest.mark.parametrize(
    ("comment", "inside", "outside"),
    [
        ("levels of a tree, 1 to 12", ["1", "12"], ["0", "13"]),
        ("rows, 1 or more", ["1"], ["0"]),
        ("share; 0 or less", ["0", "-1"], ["0.1"]),
        ("part of the rows, above 0 to 1", ["0.1", "1"], ["0", "1.1"]),
        ("above 0 and below 1", ["0.5"], ["0", "1"]),
        ("of the noise, above -1.5", ["-1"], ["-1.5"]),
        ("threads; 0 takes what the run gives", ["-1"], []),
        ("reads rows 1 to 100 of the table", ["1000"], []),
    ],
)
def test_the_range_at_the_end_of_a_comment_is_kept(
    project: Project, comment: str, inside: list[str], outside: list[str]
) -> None:
    for value in inside:
        assert found(project, f"x: float = 0.5  # {comment}", x=value) == ""
    for value in outside:
        assert f"{float(value)!r} is outside its range, " in found(project, f"x: float = 0.5  # {comment}", x=value)
        assert "is outside its range, " in found(
            project, f"x: float = 0.5  # {comment}", f"parameters = {{ x = {value} }}"
        )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([parameters("x = 1"), parameters("x = 2")], "2 cells are tagged `parameters`: [1], [2]. Keep one."),
        (
            [{**text("x = 1"), "tags": ["parameters"]}, "x = 1"],
            "cell 1, markdown, is tagged `parameters`; it belongs on",
        ),
        ([code("x = 1", "Parameters")], "cell [1] is tagged `Parameters`; the tag is `parameters`."),
        ([code("x = 1", "parameter")], "cell [1] is tagged `parameter`; the tag is `parameters`."),
    ],
)
def test_a_tag_that_is_wrong_is_named(project: Project, cells: list[Any], said: str) -> None:
    project.write("n.ipynb", *cells)
    project.toml(ONE)
    with pytest.raises(PipelineError) as error:
        plan(project.folder / "pipeline.toml", overrides={"x": "2"})
    assert f"n.ipynb: {said}" in str(error.value)


def test_a_tag_of_ones_own_beside_the_parameters_cell_is_nobodys_business(project: Project) -> None:
    project.write("n.ipynb", parameters("x = 1"), code("y = 2", "Parameters"))
    project.toml(ONE)
    assert plan(project.folder / "pipeline.toml", overrides={"x": "2"}).steps[0].parameters == {"x": 2}


def broken(change: str) -> dict[str, Any]:
    made = notebook("x = 1")
    cell = made["cells"][0]
    match change:
        case "no metadata":
            del cell["metadata"]
        case "no source":
            cell["source"] = None
        case "tags":
            cell["metadata"]["tags"] = "parameters"
        case "kind":
            cell["cell_type"] = "heading"
        case "cell":
            made["cells"][0] = "x = 1"
        case "kernelspec":
            made["metadata"]["kernelspec"] = "python3"
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no metadata", "cells[0]: Object missing required field `metadata`"),
        ("no source", "cells[0].source: Expected `str | array`, got `null`"),
        ("tags", "cells[0].metadata.tags: Expected `array`, got `str`"),
        ("kind", "cells[0].cell_type: Invalid enum value 'heading'"),
        ("cell", "cells[0]: Expected `object`, got `str`"),
        ("kernelspec", "metadata.kernelspec: Expected `object | null`, got `str`"),
    ],
)
def test_a_cell_that_is_not_one_is_a_finding(project: Project, change: str, said: str) -> None:
    project.toml(ONE)
    (project.folder / "n.ipynb").write_text(json.dumps(broken(change)))
    with pytest.raises(PipelineError) as error:
        plan(project.folder / "pipeline.toml")
    assert said in str(error.value)
    assert "open and save it in Jupyter" in str(error.value)


def test_a_notebook_nested_too_deeply_and_a_script_are_told_as_what_they_are(project: Project) -> None:
    project.toml(ONE)
    (project.folder / "n.ipynb").write_text("[" * 200_000)
    assert "is nested too deeply" in project.runner("check").err
    (project.folder / "n.py").write_text("# %%\nx = 1\n")
    project.toml(ONE.replace("n.ipynb", "n.py"))
    assert "Convert it with `jupytext --to ipynb n.py`." in project.runner("check").err


@pytest.mark.parametrize(
    "source",
    [
        "%%time\nimport features",
        "%%capture out\nimport features",
        "files = !ls\nimport features",
        "ls = %who\nimport features",
        "!pip --version \\\n  --quiet\nimport features",
        "features?\nimport features",
        "if x\nimport features  # the line above does not parse",
    ],
)
def test_an_import_beside_magics_is_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook(source)))
    (cell,) = read_notebook(tmp_path / "n.ipynb").cells
    assert "features" in imported_names(python_source(cell))


def test_code_in_the_parameters_cell_that_declares_nothing_counts_for_the_cache(project: Project) -> None:
    def run(cell: str) -> str:
        project.write("n.ipynb", parameters(cell), "print(double(x))")
        project.toml(ONE)
        assert project.runner("run").code == 0
        return str(project.step("s")["status"])

    assert run("x = 1\ndef double(v):\n    return 2 * v") == "succeeded"
    assert run("x = 1  # a remark\n\ndef double(v):\n    return 2 * v") == "cached"
    assert run("x = 1\ndef double(v):\n    return 3 * v") == "succeeded"
    assert run("x = 1\nlong = sum(\n    [1, 2])\ndef double(v):\n    return 3 * v") == "succeeded"
    assert run("x = 1\nlong = sum(\n    [1, 3])\ndef double(v):\n    return 3 * v") == "succeeded"


@pytest.mark.parametrize(
    ("language", "cell", "names", "rest"),
    [
        ("bash", "x=3\n# a remark\nexport name='a b'  # who", {"x": 3, "name": "a b"}, ""),
        ("R", "x <- 3\ny = 0.5 # share\nflag <- TRUE", {"x": 3, "y": 0.5, "flag": True}, ""),
        ("julia", 'x = 3\ns = "text"', {"x": 3, "s": "text"}, ""),
        ("scala", "val x: Int = 3", {"x": 3}, ""),
        ("bash", "x=3\ny=$(date)\nif true; then echo; fi", {"x": 3, "y": "$(date)"}, "if true; then echo; fi"),
        ("R", "x <- c(1, 2)", {}, "x <- c(1, 2)"),
    ],
)
def test_other_languages_declare_what_is_plainly_a_value(
    language: str, cell: str, names: dict[str, Any], rest: str
) -> None:
    made, other = declared(cell, language, Path("n.ipynb"))
    assert {name: one.default for name, one in made.items()} == names
    assert other == rest


@pytest.fixture
def bash(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in which the real bash kernel is installed as `bash`."""
    folder = project.folder / "jupyter" / "kernels" / "bash"
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"],
        "display_name": "Bash",
        "language": "bash",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(project.folder / "jupyter"))
    return project


def run_bash(project: Project, cell: str, *cells: str, toml: str = "") -> Done:
    project.write("n.ipynb", parameters(cell), *cells, kernel="bash", language="bash")
    project.toml(ONE + toml)
    return project.runner("run", "--json")


@pytest.mark.soak
def test_a_bash_notebook_gets_its_parameters_and_its_failure_has_a_name(bash: Project) -> None:
    toml = 'parameters = { x = 7 }\noutputs = { table = "t.txt" }\n'
    done = run_bash(bash, "x=3\ntable=work/t.txt", "echo $((x+1)) > $table; echo sum $((x+1))", toml=toml)
    assert done.code == 0, done.err
    assert "sum 8" in str(bash.executed("s")["cells"])
    assert (bash.runs[-1] / "steps" / "s" / "out" / "t.txt").read_text() == "8\n"
    assert run_bash(bash, "x=3\ntable=work/t.txt", "false", toml=toml).code == 3
    error = bash.step("s")["result"]["error"]
    assert (error["ename"], error["evalue"]) == ("Error", "exit code 1")
    assert error["cell"] == 2


@pytest.mark.soak
def test_what_a_bash_cell_does_not_show_is_taken_as_given_and_counts_for_the_cache(bash: Project) -> None:
    cell = "if true; then x=3; fi"
    for value, status in ((7, "succeeded"), (7, "cached"), (8, "succeeded")):
        assert run_bash(bash, cell, "echo sum $((x+1))", toml=f"parameters = {{ x = {value} }}").code == 0
        assert bash.step("s")["status"] == status
    assert "sum 9" in str(bash.executed("s")["cells"])
    assert "n.ipynb does not declare it" in run_bash(bash, "x=3", "echo", toml="parameters = { y = 7 }").err


def test_secrets_and_languages_without_a_translator_are_refused_before_anything_runs(bash: Project) -> None:
    said = run_bash(bash, "token=''  # secret", "echo", toml='parameters = { token = "env:HOME" }').err
    assert "`token` is secret, and secrets are handed to Python notebooks only" in said
    bash.write("n.ipynb", parameters("x = 1"), kernel="cobol", language="cobol")
    bash.toml(ONE + "parameters = { x = 7 }")
    assert "papermill cannot hand parameters to a notebook written in cobol" in bash.runner("check").err


@pytest.mark.soak
def test_threads_may_read_code_at_the_same_moment() -> None:
    """Python 3.11's ast.parse raises SystemError where the collector lets another thread parse in between."""
    source = "x = [" + "f(1, (2, 3)), " * 200 + "]\n"
    collected = [lambda *_: [None for _ in range(200)]]
    threshold = gc.get_threshold()
    interval = sys.getswitchinterval()
    gc.callbacks.extend(collected)
    gc.set_threshold(50, 2, 2)
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(syntax_tree, [source] * 100))) == 100
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected[0])
