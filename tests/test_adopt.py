"""Existing notebooks as steps: what is seen in their code, what is written, and that both do the same."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.projects import ROOT, Project, code, notebook, parameters, text

from runner.adopt.proposal import Step, propose, write
from runner.errors import PipelineError, Refused
from runner.notebook.source import Cell, python_source

# A pair as people write one: the guide shows what becomes of it
CLEAN = (
    text("# Prices\n\nOne row for each flat."),
    "%matplotlib inline\nimport csv",
    "RAW = 'data/flats.csv'  # as the agency sends it\nsmallest = 20  # square metres",
    "with open(RAW, newline='') as file:\n    rows = [row for row in csv.DictReader(file) if int(row['size']) >= smallest]",
    "with open('clean.csv', 'w', newline='') as file:\n"
    "    writer = csv.DictWriter(file, ['size', 'price'])\n    writer.writeheader()\n    writer.writerows(rows)",
)
FIT = (
    "import csv, json\nfrom pathlib import Path",
    "folder = '.'\ntest_share = 0.5",
    "rows = list(csv.DictReader(open(f'{folder}/clean.csv', newline='')))\nrows[:2]",
    "def mean_absolute_error(seen, told):\n    return sum(abs(a - b) for a, b in zip(seen, told)) / len(seen)",
    "cut = int(len(rows) * test_share)\n"
    "per_metre = sum(int(row['price']) for row in rows[:cut]) / sum(int(row['size']) for row in rows[:cut])\n"
    "mae = mean_absolute_error([int(row['price']) for row in rows[cut:]], "
    "[int(row['size']) * per_metre for row in rows[cut:]])\nprint(f'MAE {mae:.1f}')",
    "(Path('models') / 'line.json').write_text(json.dumps({'per_metre': per_metre}))",
)
FLATS = "size,price\n10,90\n30,300\n50,450\n20,210\n40,390\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The pair, with its table, beside the place for the project."""
    project = Project(tmp_path / "flats")
    project.write("clean.ipynb", *CLEAN)
    project.write("fit.ipynb", *FIT)
    (project.folder / "data").mkdir()
    (project.folder / "models").mkdir()
    (project.folder / "data" / "flats.csv").write_text(FLATS)
    return project


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def proposed(folder: Path, *cells: Any, name: str = "one.ipynb", **options: str) -> Step:
    """What becomes of one notebook."""
    path = Project(folder).write(name, *cells, **options)
    return propose([path], folder / "pipeline.toml", folder="copies").steps[0]


def sources(step: Step) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(step.copy.content)["cells"]]


# From two notebooks to a run


def test_without_yes_nothing_is_written_and_the_guide_shows_what_is_printed(project: Project) -> None:
    before = files(project.folder)
    done = project.runner("adopt", "fit.ipynb", "clean.ipynb")
    assert done.code == 0, done.err
    assert files(project.folder) == before
    guide = (ROOT / "docs" / "own-notebooks.md").read_text(encoding="utf-8")
    shown = guide.partition("$ runner adopt clean.ipynb fit.ipynb\n")[2].partition("```")[0]
    assert shown == project.runner("adopt", "clean.ipynb", "fit.ipynb").out


def test_copies_give_what_the_originals_gave_and_the_originals_stay(project: Project) -> None:
    before = files(project.folder)
    done = project.runner("adopt", "fit.ipynb", "clean.ipynb", "--yes")
    assert done.code == 0, done.err
    assert "pipeline.toml is sound: clean → fit; 0 gate rules" in done.out
    after = files(project.folder)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["notebooks/clean.ipynb", "notebooks/fit.ipynb", "pipeline.toml"]

    cells = [cell for cell in (*CLEAN, *FIT) if isinstance(cell, str)]
    script = "\n".join(python_source(Cell("code", cell)) for cell in cells)
    subprocess.run([sys.executable, "-c", script], cwd=project.folder, check=True)  # the originals, by hand
    ran = project.runner("run", "--json", "-p", "fit.test_share=0.5")
    assert (ran.code, ran.json["verdict"]) == (0, None), ran.err
    out = project.runs[-1] / "steps"
    assert (out / "clean" / "out" / "clean.csv").read_bytes() == (project.folder / "clean.csv").read_bytes()
    fitted = (project.folder / "models" / "line.json").read_bytes()
    assert (out / "fit" / "out" / "line.json").read_bytes() == fitted
    mae = ran.json["metrics"]["fit.mae"]
    assert mae["value"] == pytest.approx(32.9, abs=20)
    smaller = project.runner("run", "--json", "-p", "clean.smallest=35")
    assert smaller.json["metrics"]["fit.mae"]["value"] != mae["value"]

    toml = (project.folder / "pipeline.toml").read_text()
    lines = [line.removeprefix("# ") for line in toml.splitlines()]
    rule = "\n".join([*toml.splitlines(), "[[gate]]", lines[lines.index("[[gate]]") + 1], "max = 1e9"])
    project.toml(rule + "\n")
    assert project.runner("run", "--json").json["verdict"] == "pass"

    again = project.runner("adopt", "fit.ipynb", "clean.ipynb", "--yes")
    assert again.code == 2
    assert "pipeline.toml exists; nothing is overwritten" in again.err
    assert "notebooks/fit.ipynb exists; nothing is overwritten" in again.err


def test_the_pipeline_file_judges_nothing_until_somebody_writes_a_threshold(project: Project) -> None:
    proposal = propose([project.folder / "fit.ipynb"], project.folder / "pipeline.toml")
    table = tomllib.loads(proposal.toml)
    assert table == {
        "name": "flats",
        "steps": {
            "fit": {
                "notebook": "notebooks/fit.ipynb",
                "inputs": {"clean_csv": "./clean.csv"},
                "outputs": {"line_json": "line.json"},
            }
        },
    }
    assert '# [[gate]]\n# metric = "fit.mae"\n# max =\n' in proposal.toml
    with pytest.raises(tomllib.TOMLDecodeError):  # without a number the rule cannot be turned on
        tomllib.loads(proposal.toml.replace("# [[gate]]\n# metric", "[[gate]]\nmetric").replace("# max", "max"))


def test_the_json_says_the_same_and_what_check_found(project: Project) -> None:
    (project.folder / "data" / "flats.csv").unlink()
    done = project.runner("adopt", "fit.ipynb", "clean.ipynb", "--yes", "--json")
    assert done.code == 2
    assert [step["name"] for step in done.json["steps"]] == ["clean", "fit"]
    assert done.json["steps"][1]["inputs"] == {"clean_csv": "clean.clean_csv"}
    assert done.json["written"] == ["notebooks/clean.ipynb", "notebooks/fit.ipynb", "pipeline.toml"]
    assert "there is no file or folder" in done.json["check"]["errors"][0]
    assert any("reads data/flats.csv, and there is no such file" in note for note in done.json["steps"][0]["notes"])


# What is seen


@pytest.mark.parametrize(
    ("cell", "inputs", "outputs"),
    [
        ("pd.read_csv('a/b.csv', sep=';')", {"b_csv": "./a/b.csv"}, {}),
        ("pd.read_csv(filepath_or_buffer='b.csv')", {"b_csv": "./b.csv"}, {}),
        ("df.to_parquet('out/b.parquet')", {}, {"b_parquet": "b.parquet"}),
        ("P = '../b.csv'\npd.read_csv(P)", {"P": "../b.csv"}, {}),
        ("D = 'a'\npd.read_csv(f'{D}/b.csv')", {"b_csv": "./a/b.csv"}, {}),
        ("D = 'a/'\npd.read_csv(D + 'b.csv')", {"b_csv": "./a/b.csv"}, {}),
        ("import os\nD = 'a'\npd.read_csv(os.path.join(D, 'c', 'b.csv'))", {"b_csv": "./a/c/b.csv"}, {}),
        ("D = Path('a')\npd.read_csv(D / 'b.csv')", {"b_csv": "./a/b.csv"}, {}),
        ("D = Path.cwd().parent / 'a'\nx = (D / 'b.txt').read_text()", {"b_txt": "../a/b.txt"}, {}),
        ("Path('b.txt').write_text('x')", {}, {"b_txt": "b.txt"}),
        ("open('b.txt', 'w').write(open('c.txt').read())", {"c_txt": "./c.txt"}, {"b_txt": "b.txt"}),
        ("with Path('b.bin').open('wb') as f:\n    pickle.dump(1, f)", {}, {"b_bin": "b.bin"}),
        ("joblib.dump(model, 'm.joblib')", {}, {"m_joblib": "m.joblib"}),
        ("np.save('a.npy', x)\ny = np.load('b.npy')", {"b_npy": "./b.npy"}, {"a_npy": "a.npy"}),
        ("torch.save(net.state_dict(), 'net.pt')", {}, {"net_pt": "net.pt"}),
        ("plt.savefig('p.png', dpi=90)\nfig.savefig('q.png')", {}, {"p_png": "p.png", "q_png": "q.png"}),
        ("df.to_csv('b.csv')\npd.read_csv('./b.csv')", {}, {"b_csv": "b.csv"}),
        ("df.to_csv('a/b.csv')\ndf.to_csv('c/b.csv')", {}, {"b_csv": "a/b.csv", "b_csv_2": "c/b.csv"}),
        ("pd.read_csv('https://h.example/t.csv')", {"t_csv": "https://h.example/t.csv"}, {}),
        ("b_csv = 3\nb_csv += 1\npd.read_csv('b.csv')", {"b_csv_2": "./b.csv"}, {}),
        ("!ls \\\n  --all\nopen('b.csv')", {"b_csv": "./b.csv"}, {}),
        ("print(f\"{open('b.csv').read()}\")", {"b_csv": "./b.csv"}, {}),
        ("def load():\n    return pd.read_csv('b.csv')", {"b_csv": "./b.csv"}, {}),
        ("text = df.to_csv()\njson.load(f)\nmodel.save(where)", {}, {}),
    ],
)
def test_a_path_is_found_in_the_forms_that_people_write(
    tmp_path: Path, cell: str, inputs: dict[str, str], outputs: dict[str, str]
) -> None:
    step = proposed(tmp_path, "import pandas as pd\nfrom pathlib import Path", cell)
    assert (step.inputs, step.outputs) == (inputs, outputs), step.notes
    copy = "\n".join(sources(step))
    assert ast.parse(python_source(Cell("code", copy)))
    names = "|".join({**inputs, **outputs})
    assert not names or all(copy.count(name) >= 2 for name in names.split("|"))  # declared and used


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ("n = 5  # trees\nm = [1, 2]\nt = {'a': 1.5}\nflag = True\nname = 'x'", ["n", "m", "t", "flag", "name"]),
        ("n = 5\nn += 1", []),
        ("n = 5\nfor n in range(3): pass", []),
        ("n = 5\ndel n", []),
        ("rows = []\nrows.append(1)\nseen = ['a']\nseen.append('b')", []),
        ("t = {'a': 1}\nt['b'] = 2", []),
        ("if True:\n    n = 5", []),
        ("n = 5; k = 6", []),
        ("n = compute()\nk = n + 1\nx = y = 5\na, b = 1, 2", []),
        ("max = 5\n_private = 6\nnothing = None\nboth = (1, 2)\nempty = ''", []),
        ("api_key = 'abc'\npassword = 'x'", []),
        ("from settings import *\nn = 5", []),
        ("%run other.ipynb\nn = 5", []),
        ("n = 5\nn = !ls", []),
        ("%%time\nn = 5", []),
    ],
)
def test_a_constant_is_a_name_with_one_plain_value(tmp_path: Path, cell: str, kept: list[str]) -> None:
    step = proposed(tmp_path, "import os", cell, "print(1)")
    assert list(step.parameters) == kept
    if not kept:
        assert sources(step) == ["import os", cell, "print(1)"]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("auc = roc_auc_score(y, p)\nprint('AUC', auc)", {"auc": "higher"}),
        ("rmse = np.sqrt(mean_squared_error(y, p))\nprint(f'{rmse:.2f}')", {"rmse": "lower"}),
        ("mse = metrics.mean_squared_error(y, p)\nrmse = mse ** 0.5\nrmse", {"rmse": "lower"}),
        ("acc = round(model.score(X, y) * 100, 2)\ndisplay(acc)", {"acc": "higher"}),
        ("mean = cross_val_score(m, X, y).mean()\nprint('%.2f' % mean)", {"mean": ""}),
        ("loss = -log_loss(y, p)\nloss", {"loss": ""}),
        ("auc = roc_auc_score(y, p)", {}),
        ("auc = roc_auc_score(y, p)\nauc;", {}),
        ("auc = roc_auc_score(y, p)\nprint(auc)\nauc = 'good'", {}),
        ("f1 = f1_score(y, p, average=None)\nprint(f1)", {}),
        ("def f():\n    auc = roc_auc_score(y, p)\n    print(auc)", {}),
        ("from runner.scraps import metric\nauc = roc_auc_score(y, p)\nprint(auc)\nmetric('auc', auc)", {"auc": ""}),
    ],
)
def test_a_metric_is_a_printed_name_with_a_metrics_value(tmp_path: Path, cell: str, found: dict[str, str]) -> None:
    step = proposed(tmp_path, cell)
    assert step.metrics == found
    assert ("metric(" in sources(step)[-1]) == bool(found)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            "pd.read_csv(sys.argv[1])",
            "cell [1] calls read_csv on a path that is only known while it runs, `sys.argv[1]`",
        ),
        ("for name in names:\n    open(name + '.txt')", "a path that is only known while it runs"),
        ("pd.read_sql('select 1', engine)", "`pd.read_sql` reads a database"),
        ("requests.get('https://h.example')", "`requests.get` asks the web"),
        ("n = input('how many? ')", "`input` asks whoever runs it, and nobody is there"),
        ("!pip install x", "runs `pip install x` in a shell"),
        ("files = !ls", "runs `ls` in a shell"),
        ("%%bash\nls", "is a %%bash cell, whose text is not read as Python"),
        ("%run other.ipynb", "has `%run other.ipynb`; what it does is not seen"),
        ("pd.read_csv('/kaggle/input/t.csv')", "an absolute path, /kaggle/input/t.csv; it is not on this machine"),
        ("api_key = 'abc'", "gives `api_key` a value in the clear"),
        ("connect(password='x')", "hands over `password` in the clear"),
        ("key = 'AKIA" + "A" * 16 + "'", "what looks like a credential (AWS access key id)"),
        ("pd.read_csv('https://me:secret@h.example/t.csv')", "an address with a credential in it"),
        ("pd.read_csv('http://h.example/t.csv')", "which a run cannot take as an input"),
        ("open('log.txt', 'a').write('x')", "to add to it or to change it"),
        ("x = open('t.csv').read()\nopen('t.csv', 'w').write(x)", "and later code writes it anew"),
        ("pd.read_csv('C:\\\\data\\\\t.csv')", "a path of Windows"),
        ("!ls\n# a\x0cb\nopen('t.csv')", "where the code cannot be changed for certain"),
        ("joblib.dump(m, 'm.pkl')", "likely a pickle: a run keeps it, and registers none"),
        ("print(accuracy_score(y, p))", "shows `accuracy_score(y, p)` without a name"),
        ("for f in glob.glob('*.csv'): pass", "`glob.glob` lists a folder"),
        ("os.chdir('..')", "`os.chdir` changes the folder"),
    ],
)
def test_what_cannot_be_seen_is_said_with_its_cell(tmp_path: Path, cell: str, said: str) -> None:
    step = proposed(tmp_path, cell)
    assert [note for note in step.notes if said in note and note.startswith("cell [1] ")], step.notes


def test_prose_comments_and_magics_stay_where_they_are_and_outputs_go(tmp_path: Path) -> None:
    path = Project(tmp_path).write(
        "one.ipynb",
        text("# Title"),
        "%matplotlib inline\n# why\nx = 1",
        "!ls\nopen('a.txt').read()  # read it",
        code(""),
    )
    document = json.loads(path.read_text())
    document["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "old"}]
    path.write_text(json.dumps(document))
    step = propose([path], tmp_path / "pipeline.toml", folder="copies").steps[0]
    assert sources(step) == [
        "# Title",
        'x = 1\na_txt: str = "../a.txt"  # what is read',
        "%matplotlib inline\n# why\n",
        "!ls\nopen(a_txt).read()  # read it",
        "",
    ]
    assert b'"old"' not in step.copy.content


def test_a_cell_of_constants_becomes_the_parameters_cell_in_its_place(tmp_path: Path) -> None:
    step = proposed(tmp_path, "import csv", "# settings\nn = 5\nraw = 'r.csv'", "open(raw)\nopen('w.csv', 'w')")
    assert sources(step) == [
        "import csv",
        "# settings\nn = 5\nraw = '../r.csv'\nw_csv: str = \"work/one/w.csv\"  # what is written",
        "import pathlib\n\npathlib.Path(w_csv).parent.mkdir(parents=True, exist_ok=True)",
        "open(raw)\nopen(w_csv, 'w')",
    ]
    assert json.loads(step.copy.content)["cells"][1]["metadata"]["tags"] == ["parameters"]


def test_a_parameters_cell_that_is_there_stays_and_gets_the_paths(tmp_path: Path) -> None:
    step = proposed(tmp_path, "k = 3", parameters("n: int = 5\nraw = 'r.csv'"), "open(raw)\nopen('s.csv')")
    assert sources(step)[:2] == ["k = 3", "n: int = 5\nraw = '../r.csv'\ns_csv: str = \"../s.csv\"  # what is read"]
    assert (list(step.inputs), step.parameters) == (["raw", "s_csv"], {"n": 5})


def test_what_a_notebook_imports_from_its_folder_is_copied_too(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("n = 1\n")
    path = Project(tmp_path).write("one.ipynb", "import helper")
    proposal = propose([path], tmp_path / "new" / "pipeline.toml")
    assert write(proposal) == ["notebooks/one.ipynb", "notebooks/helper.py", "pipeline.toml"]
    assert (tmp_path / "new" / "notebooks" / "helper.py").read_text() == "n = 1\n"
    with pytest.raises(Refused, match="nothing is overwritten"):
        write(proposal)


def test_the_order_is_that_of_who_reads_what_another_writes(tmp_path: Path) -> None:
    project = Project(tmp_path)
    cells = {"c": ("b.csv", "c.csv"), "a": ("raw.csv", "a.csv"), "b": ("a.csv", "b.csv")}
    for name, (read, written) in cells.items():
        project.write(f"{name}.ipynb", f"open('{written}', 'w').write(open('{read}').read())")
    paths = [tmp_path / f"{name}.ipynb" for name in cells]
    assert [step.name for step in propose(paths, tmp_path / "pipeline.toml", folder="copies").steps] == ["a", "b", "c"]
    project.write("a.ipynb", "open('a.csv', 'w').write(open('c.csv').read())")
    with pytest.raises(PipelineError, match="each of these notebooks reads what the one before it writes"):
        propose(paths, tmp_path / "pipeline.toml", folder="copies")


# What is refused


HOSTILE = {
    "text": (b"# not JSON", "is not complete notebook JSON"),
    "list": (b"[1, 2]", "has nbformat None, not 4"),
    "old": (b'{"nbformat": 3, "worksheets": []}', "has nbformat 3, not 4"),
    "empty": (b"", "the file is empty"),
    "no source": (b'{"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "metadata": {}}]}', "source"),
    "syntax": (json.dumps(notebook("x = 1", "print 'two'")).encode(), "cell [2] is not Python"),
    "null": (json.dumps(notebook("x = '\0'")).encode(), "cell [1] is not Python: "),
    "nested": (json.dumps(notebook("x = " + "(" * 5000)).encode(), "cell [1] is not Python: "),
    "R": (json.dumps(notebook("x <- 1", language="R")).encode(), "is written in R"),
    "prose": (json.dumps(notebook(text("# only prose"))).encode(), "has no code cell"),
    "two cells": (json.dumps(notebook(parameters("a = 1"), parameters("b = 2"))).encode(), "2 cells are tagged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_python_notebook_is_refused_in_one_sentence_and_nothing_is_written(
    project: Project, kind: str
) -> None:
    content, said = HOSTILE[kind]
    (project.folder / "bad.ipynb").write_bytes(content)
    before = files(project.folder)
    with pytest.raises(PipelineError) as refused:
        propose([project.folder / "fit.ipynb", project.folder / "bad.ipynb"], project.folder / "pipeline.toml")
    (finding,) = refused.value.findings
    assert said in finding
    assert "bad.ipynb" in finding
    assert files(project.folder) == before


def test_every_notebook_that_is_refused_has_its_sentence(project: Project) -> None:
    folder = project.folder
    project.write("other/fit.ipynb", "x = 1")
    with (folder / "huge.ipynb").open("wb") as file:
        file.truncate(300_000_000)
    done = project.runner("adopt", "fit.ipynb", "other/fit.ipynb", "nowhere.ipynb", "huge.ipynb", "--yes")
    assert done.code == 2
    for said in (
        "fit.ipynb and other/fit.ipynb have one name",
        "nowhere.ipynb: there is no such notebook",
        "huge.ipynb has 300,000,000 bytes, more than 200,000,000",
    ):
        assert said in done.err
    assert not (folder / "pipeline.toml").exists()
    assert not (folder / "notebooks").exists()


def test_names_and_texts_of_a_notebook_do_nothing_to_the_terminal(project: Project) -> None:
    project.write("odd.ipynb", "title = '\x1b]0;owned\x07'\nopen('\x1b[31m.txt')")
    done = project.runner("adopt", "odd.ipynb")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert tomllib.loads(propose([project.folder / "odd.ipynb"], project.folder / "pipeline.toml").toml)


# For any notebook


NAMES = st.sampled_from(["a", "b", "c", "seed", "Größe", "max_depth"])
LITERALS = st.one_of(
    st.integers(),
    st.booleans(),
    st.text("xyzäß'\"\\ {}#%", max_size=8),
    st.floats(allow_nan=False, allow_infinity=False),
).map(repr)
PATHS = st.sampled_from(["one.csv", "two/three.csv", "../four.txt", "./one.csv", "größe.csv"])
LINES = st.one_of(
    st.builds("{} = {}".format, NAMES, LITERALS),
    st.builds("{} = {}  # {}".format, NAMES, LITERALS, st.text("abc é'\"", max_size=5)),
    st.builds("{} = [\n    {},  # first\n    {},\n]".format, NAMES, LITERALS, LITERALS),
    st.builds("x = open({!r}).read()  # in".format, PATHS),
    st.builds("open({!r}, 'w').write(str({}))".format, PATHS, NAMES),
    st.builds("{} = {!r}\nopen({})".format, NAMES, PATHS, st.sampled_from(["a", "seed"])),
    st.builds("print('é', {}, open({!r}))".format, NAMES, PATHS),
    st.builds("if {}:\n    {} = {}".format, NAMES, NAMES, LITERALS),
    st.builds("def f({}):\n    return open({!r})".format, NAMES, PATHS),
    st.sampled_from(["%matplotlib inline", "!ls *.csv", "# a comment", "", "a += 1", "import os", "y = x; z = 1"]),
)
CELLS = st.lists(st.lists(LINES, min_size=1, max_size=5).map("\n".join), min_size=1, max_size=5)


@given(CELLS.filter(lambda cells: any(cell.strip() for cell in cells)))
@example(["a = \"'\"  # \nb = 'one.csv'\nopen(a)"])  # a file of that name
@pytest.mark.soak
def test_a_copys_code_is_the_originals_but_for_literals_and_places(tmp_path_factory: Any, cells: list[str]) -> None:
    folder = _folder(tmp_path_factory)
    step = proposed(folder, *cells)
    keys = {**step.inputs, **step.outputs}
    before = [_statements(cell, keys) for cell in cells]
    now: dict[int, list[str]] = {}
    added: list[str] = []
    for origin, source in zip(step.copy.origins, sources(step), strict=True):
        statements = _statements(source, keys)
        if origin is None:
            added += statements
        else:
            now[origin] = [*statements]
    for place, statements in enumerate(before):
        rest = [*now.get(place, [])]
        kept = [statement for statement in statements if statement in rest]
        moved = [statement for statement in statements if statement not in rest]
        everywhere = [*added, *(item for other in now.values() for item in other)]
        assert all(statement in everywhere for statement in moved)
        assert [statement for statement in rest if statement in statements] == kept  # in their order
    for line in "\n".join(cells).splitlines():
        if line.startswith(("%", "!", "#")):
            assert any(line in source.splitlines() for source in sources(step))
    written = tomllib.loads(propose([folder / "one.ipynb"], folder / "pipeline.toml", folder="copies").toml)
    assert written["steps"]["one"].get("inputs", {}) == step.inputs


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_any_text_in_a_cell_gives_a_proposal_or_a_sentence(tmp_path_factory: Any, cells: list[str]) -> None:
    folder = _folder(tmp_path_factory)
    try:
        step = proposed(folder, *cells)
    except (PipelineError, UnicodeEncodeError):
        return
    assert [source for source in cells if source.strip()] == [source for source in sources(step) if source.strip()] or (
        step.parameters or step.inputs or step.outputs
    )


_FOLDERS: list[Path] = []


def _folder(tmp_path_factory: Any) -> Path:
    """One folder for all examples: each overwrites the notebook in it."""
    if not _FOLDERS:
        _FOLDERS.append(tmp_path_factory.mktemp("any"))
    return _FOLDERS[0]


def _statements(source: str, files: Mapping[str, str]) -> Sequence[str]:
    """Each statement's tree, with paths in one form, whether they stand there or their parameter does."""
    return [ast.dump(_Paths(files).visit(node)) for node in ast.parse(python_source(Cell("code", source))).body]


class _Paths(ast.NodeTransformer):
    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        self.names = {Path(path).name for path in files.values()}

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and (
            node.value.endswith((".csv", ".txt")) or Path(node.value).name in self.names
        ):
            return ast.Constant(Path(node.value).name)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.files and isinstance(node.ctx, ast.Load):
            return ast.Constant(Path(self.files[node.id]).name)
        return node
