"""What pipeline.toml and the notebooks say is checked before anything runs; every finding names its place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from support.projects import Project, code, parameters

from runner.errors import PipelineError
from runner.notebook.source import read_notebook
from runner.pipeline.plan import Plan, plan
from runner.pipeline.registering import registers

TWO = """
name = "two"
[parameters]
seed = 1
[steps.first]
notebook = "a.ipynb"
inputs = { source = "./table.csv" }
outputs = { table = "table.parquet" }
[steps.second]
notebook = "b.ipynb"
inputs = { table = "first.table" }
parameters = { depth = 5 }
"""


@pytest.fixture
def two(project: Project) -> Project:
    project.write("a.ipynb", parameters('source: str = ""\ntable: str = ""\nseed: int = 1'), "print(seed)")
    project.write("b.ipynb", parameters('table: str = ""\nseed: int = 1\ndepth: int = 5'), "print(depth)")
    (project.folder / "table.csv").write_text("a,b\n1,2\n")
    project.toml(TWO)
    return project


def planned(project: Project, **overrides: str) -> Plan:
    return plan(project.folder / "pipeline.toml", overrides={k.replace("__", "."): v for k, v in overrides.items()})


def findings(project: Project, toml: str, **overrides: str) -> str:
    project.toml(toml)
    with pytest.raises(PipelineError) as error:
        planned(project, **overrides)
    return str(error.value)


def test_steps_run_in_the_order_of_their_inputs_and_values_have_the_declared_types(two: Project) -> None:
    made = planned(two, seed="007")
    assert [step.name for step in made.steps] == ["first", "second"]
    assert [step.parameters for step in made.steps] == [{"seed": 7}, {"depth": 5, "seed": 7}]


def test_a_value_for_one_step_reaches_only_that_step(two: Project) -> None:
    made = planned(two, second__seed="9")
    assert [step.parameters["seed"] for step in made.steps] == [1, 9]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ('notebook = "b.ipynb"', 'notebok = "b.ipynb"'),
            "steps.second.notebok is not a key; did you mean `notebook`?",
        ),
        (("first.table", "first.tabel"), "step first has no output `tabel`; did you mean `table`?"),
        (("first.table", "frist.table"), "there is no step `frist`; did you mean `first`?"),
        (("depth = 5", "deph = 5"), "b.ipynb does not declare it in its parameters cell; did you mean `depth`?"),
        (("depth = 5", 'depth = "5"'), "steps.second.parameters.depth: '5' does not fit int"),
        (("depth = 5", "depth = true"), "True does not fit int"),
        (("seed = 1", "sed = 1"), "parameters.sed: no notebook declares it; did you mean `seed`?"),
        (("./table.csv", "./absent.csv"), "there is no file or folder"),
        (("./table.csv", "table.csv"), "there is no step `table`"),
        (("./table.csv", "second.x"), "step second has no output `x`"),
        (('"table.parquet"', '"../table.parquet"'), "must be a path below the step's output folder"),
        (('"table.parquet"', '"/table.parquet"'), "must be a path below the step's output folder"),
        (('name = "two"', 'nam = "two"'), "`nam` is not a key; did you mean `name`?"),
        (("depth = 5", 'depth = 5 }\nafter = ["first"]\nretries = -1\nx = {'), "steps.second.x is not a key"),
        (("depth = 5", "table = 5"), "`table` has more than one role"),
        (("depth = 5", "depth = = 5"), "pipeline.toml: is not valid TOML: Invalid value (at line "),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_nearest_name(
    two: Project, change: tuple[str, str], said: str
) -> None:
    found = findings(two, TWO.replace(*change))
    assert said in found
    assert "pipeline.toml" in found or "steps." in found


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ('metric = "second.auc"\nminimum = 0.8', "minimum is not a key; did you mean `min`?"),
        ('metric = "second.auc"', "exactly one of min and max"),
        ('metric = "second.auc"\nmin = 0.1\nmax = 0.2', "exactly one of min and max"),
        ('metric = "second.auc"\nmin = nan', "a finite number"),
        ('metric = "sekond.auc"\nmin = 0.1', "is not a `step.metric`; did you mean `second`?"),
        ('metric = "second.auc"\nmin = "0.1"', "Expected `float | null`, got `str`"),
        ('metric = "second.auc"\nmin = 0.1\nwhen = "second.tabel"', "has no input `tabel`; did you mean `table`?"),
    ],
)
def test_a_gate_with_a_mistake_is_refused_when_it_is_read(two: Project, gate: str, said: str) -> None:
    assert said in findings(two, f"{TWO}\n[[gate]]\n{gate}\n")


def test_needing_a_verdict_without_rules_is_refused(two: Project) -> None:
    two.write("b.ipynb", parameters('table: str = ""\nverdict: str = ""\nseed: int = 1\ndepth: int = 5'))
    toml = TWO.replace('{ table = "first.table" }', '{ table = "first.table", verdict = "gate.verdict" }')
    assert "needs gate.verdict, but there is no [[gate]] rule" in findings(two, toml)


def test_a_cycle_is_named(two: Project) -> None:
    toml = TWO.replace('notebook = "a.ipynb"', 'notebook = "a.ipynb"\nafter = ["second"]')
    assert "the steps form a cycle: " in findings(two, toml)


def test_a_profile_overrides_any_key_and_its_skipped_steps_do_not_run(two: Project) -> None:
    two.toml(
        TWO + '\n[profiles.smoke]\nparameters = { seed = 3 }\nskip = ["second"]\nsteps.second.parameters.depth = 2\n'
    )
    made = plan(two.folder / "pipeline.toml", profile="smoke")
    assert [(step.name, step.skip) for step in made.steps] == [("first", ""), ("second", "the profile smoke skips it")]
    assert made.steps[1].parameters == {"seed": 3, "depth": 2}
    with pytest.raises(PipelineError, match="did you mean `smoke`"):
        plan(two.folder / "pipeline.toml", profile="smok")


def test_drift_between_cell_and_file_is_a_warning(two: Project) -> None:
    two.toml(TWO.replace("depth = 5", "depth = 6"))
    assert planned(two).warnings == ("depth is 5 in b.ipynb, 6 in pipeline.toml; this run uses 6.",)


def test_sections_about_what_a_run_does_not_use_are_read_and_their_unknown_keys_refused(two: Project) -> None:
    reserved = '[store]\nruns = "s3://b/x"\n[approval]\nby = ["a"]\nnot_starter = true\n[targets.production]\nkind = "local"\n[sagemaker]\nvolume_gb = 30\n[steps.first.sagemaker]\ninstance = "ml.m5.large"\n'
    first = TWO.replace("[steps.second]", "[steps.second]")
    two.toml(first + reserved)
    assert planned(two).pipeline.store.runs == "s3://b/x"
    assert "sagemaker.instanc is not a key; did you mean `instance`?" in findings(
        two, TWO + '[sagemaker]\ninstanc = "x"\n'
    )
    assert "sagemaker.instance_counts is not a key; did you mean `instance_count`?" in findings(
        two, TWO + "[sagemaker]\ninstance_counts = 1\n"
    )
    assert "monitor: [{'target': 'production'}] is not a table" in findings(
        two, TWO + '[[monitor]]\ntarget = "production"\n'
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"cells": [', "is not complete notebook JSON"),
        (b'{"nbformat": 3, "worksheets": []}', "has nbformat 3"),
        (b"[]", "has nbformat None"),
    ],
)
def test_a_broken_notebook_file_is_named(two: Project, content: bytes, said: str) -> None:
    (two.folder / "b.ipynb").write_bytes(content)
    with pytest.raises(PipelineError) as error:
        planned(two)
    assert said in str(error.value)
    assert "b.ipynb" in str(error.value)


def test_no_parameters_cell_and_two_of_them_are_named(two: Project) -> None:
    two.write("b.ipynb", "depth = 5")
    assert "b.ipynb: no code cell is tagged `parameters`; it needs exactly one" in findings(two, TWO)
    two.write("b.ipynb", parameters("depth = 5"), parameters("depth = 6"))
    assert "b.ipynb: 2 cells are tagged `parameters`: [1], [2]. Keep one." in findings(two, TWO)


def test_a_cell_that_an_earlier_execution_left_in_the_source_is_named_and_never_runs(two: Project) -> None:
    for tag in ("injected-parameters", "runner-debug"):
        for cells in ((parameters("x: int = 1"), code("x = 99", tag)), (code("x = 99", tag), parameters("x: int = 1"))):
            two.write("c.ipynb", *cells, "open('ran', 'w')")
            two.toml('name = "left"\n[steps.only]\nnotebook = "c.ipynb"\n')
            for command in ("check", "run"):
                done = two.runner(command)
                assert done.code == 2
                assert re.search(rf"c.ipynb: cell \[[12]\], `x = 99`, is tagged `{tag}`.*Delete the cell", done.err)
    assert not (two.folder / "ran").exists()
    assert two.runs == []


def test_a_parameter_name_that_is_code_is_refused(two: Project) -> None:
    said = findings(two, TWO.replace("depth = 5", "\"x=1; open('f')\" = 5"))
    assert "is not a Python name" in said


def test_a_runner_module_beside_a_notebook_is_refused(two: Project) -> None:
    (two.folder / "runner.py").write_text("")
    with pytest.raises(PipelineError, match="would shadow the package"):
        planned(two)


def test_unknown_names_on_the_command_line_are_refused_with_the_nearest(two: Project) -> None:
    assert "-p sed: no notebook declares it; did you mean `seed`?" in findings(two, TWO, sed="1")
    assert "-p second.deph: b.ipynb does not declare `deph`; did you mean `depth`?" in findings(
        two, TWO, second__deph="1"
    )
    assert "-p seed: 'abc' does not fit int" in findings(two, TWO, seed="abc")
    assert "write -p first.source=" in findings(two, TWO, source="./x.csv")


@pytest.mark.parametrize("annotation", ["Path", "pathlib.Path", "tuple[int, int]", "datetime.date"])
def test_types_that_papermill_cannot_hand_over_are_refused(two: Project, annotation: str) -> None:
    two.write("b.ipynb", parameters(f'table: str = ""\nseed: int = 1\ndepth: {annotation} = None'))
    assert "which papermill cannot hand over" in findings(two, TWO)


def test_a_loop_of_links_and_a_pipe_as_source_are_refused_and_do_not_hang(two: Project) -> None:
    (two.folder / "loop.csv").symlink_to(two.folder / "loop.csv")
    assert "loop.csv" in findings(two, TWO.replace("./table.csv", "./loop.csv"))
    os.mkfifo(two.folder / "pipe.csv")
    assert "is neither a file nor a folder" in findings(two, TWO.replace("./table.csv", "./pipe.csv"))


def test_modules_beside_a_notebook_are_found_recursively(two: Project) -> None:
    (two.folder / "features.py").write_text("import helpers.more\nimport json\n")
    (two.folder / "helpers").mkdir()
    (two.folder / "helpers" / "__init__.py").write_text("")
    (two.folder / "helpers" / "more.py").write_text("from . import last\n")
    (two.folder / "helpers" / "last.py").write_text("")
    (two.folder / "unused.py").write_text("")
    two.write(
        "b.ipynb",
        parameters('table: str = ""\nseed: int = 1\ndepth: int = 5'),
        "def f():\n    import features\n%time x = 1",
    )
    modules = planned(two).steps[1].modules
    assert list(modules) == ["features.py", "helpers/__init__.py", "helpers/last.py", "helpers/more.py"]


def test_check_prints_every_finding_and_leaves_with_2(two: Project) -> None:
    two.toml(TWO.replace("first.table", "first.tabel").replace("depth = 5", "deph = 5"))
    done = two.runner("check")
    assert done.code == 2
    assert "tabel" in done.err
    assert "deph" in done.err
    as_json = two.runner("check", "--json")
    assert as_json.code == 2
    assert len(json.loads(as_json.out)["errors"]) == 2
    two.toml(TWO)
    assert two.runner("check").code == 0
    assert not (two.folder / "runs").exists()


def test_a_missing_pipeline_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    done = Project(tmp_path).runner("run")
    assert done.code == 2
    assert "--pipeline FILE" in done.err


def test_an_error_while_other_steps_go_on_ends_them_and_records_what_became_of_them(project: Project) -> None:
    project.write("wait.ipynb", parameters("x: int = 1"), "import time; time.sleep(600)")
    project.write("make.ipynb", parameters("out: str = ''"), "open(out, 'w').write('7 bytes')")
    lose = "import pathlib\n[p.unlink() for p in pathlib.Path('runs/objects').iterdir() if p.stat().st_size == 7]"
    project.write("lose.ipynb", parameters("x: int = 1"), lose)
    project.write("use.ipynb", parameters("table: str = ''"), "print(open(table).read())")
    project.toml(
        'name = "p"\n[steps.wait]\nnotebook = "wait.ipynb"\n'
        '[steps.make]\nnotebook = "make.ipynb"\noutputs = { out = "x.txt" }\n'
        '[steps.lose]\nnotebook = "lose.ipynb"\nafter = ["make"]\n'
        '[steps.use]\nnotebook = "use.ipynb"\ninputs = { table = "make.out" }\nafter = ["lose"]\n'
    )
    done = project.runner("run", "-j", "2")
    assert done.code == 8
    assert "is missing from" in done.err
    assert [step["status"] for step in project.manifest["steps"]] == ["interrupted", "succeeded", "succeeded", None]


@pytest.mark.parametrize(
    ("cells", "known"),
    [
        (["import runner.model as ours", "ours.register(model)"], True),
        (["from runner.model import *", "def f(:", "x = [register(m) for m in (model,)]"], True),
        (["from runner.model.request import register as enter\nenter(model)"], True),
        (["import runner", "%time runner.model.register(model)\nrunner.model.register(model, card='')"], True),
        (["from runner.model import save", "register(model)"], False),
        (["# runner.model.register(model)", "text = 'runner.model.register(model)'"], False),
        (["import runner.model, client", "client.register(runner.model)"], False),
        (["%%bash\nrunner.model.register(model)"], False),
    ],
)
def test_that_a_notebook_registers_is_read_from_its_calls(project: Project, cells: list[str], known: bool) -> None:
    path = project.write("a.ipynb", *cells)
    assert registers(read_notebook(path), []) is known
    module = path.with_name("helper.py")
    module.write_text("\n".join(cells))
    if "def f(:" not in cells and "%" not in "".join(cells):  # a module has to parse
        assert registers(read_notebook(project.write("b.ipynb", "import helper")), [module]) is known
