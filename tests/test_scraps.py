"""What notebooks record, in real kernels, and what we and scrapbook read of it."""

from __future__ import annotations

import base64
import io
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.projects import ROOT, notebook

from runner import scraps
from runner.errors import UsageError
from runner.gate import judge
from runner.notebook.recorded import read_figures, read_scraps
from runner.records import Metric, Rule

KEY = "application/scrapbook.scrap.{}+json"


def scrap(name: Any, data: Any, encoder: str = "json") -> dict[str, Any]:
    payload = {"name": name, "data": data, "encoder": encoder, "version": 1}
    shown = {"scrapbook": {"name": name, "data": True, "display": False}}
    return {"output_type": "display_data", "metadata": shown, "data": {KEY.format(encoder): payload}}


def stored(path: Path, *cells: list[dict[str, Any]], ascii_only: bool = False) -> Path:
    """A notebook file whose code cells have these outputs."""
    made = notebook(*["pass" for _ in cells])
    for number, (cell, outputs) in enumerate(zip(made["cells"], cells, strict=True), start=1):
        cell |= {"outputs": outputs, "execution_count": number}
    path.write_text(json.dumps(made, ensure_ascii=ascii_only), encoding="utf-8")
    return path


def executed(path: Path, *sources: str) -> Path:
    """The notebook after a real kernel ran all its cells."""
    import nbclient
    import nbformat

    nb = nbformat.from_dict(notebook(*sources, kernel="python3"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the client's own: an unencrypted port, an event loop policy
        nbclient.NotebookClient(nb, timeout=60, allow_errors=True).execute()
    nbformat.write(nb, path)
    return path


def theirs(path: Path, *encoders: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scrapbook 0.5 uses what its dependencies have deprecated
        import scrapbook

        found = scrapbook.read_notebook(str(path)).scraps
    return {name: one.data for name, one in found.items() if one.encoder in ("json", "text", *encoders)}


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
keys = names | st.just(KEY.format("json"))
plain = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | names
)
quoted = st.builds(lambda name: json.dumps(scrap(name, 0.5)), names)
# scrapbook's reader does not take null, and a NaN is not equal to itself
data = st.deferred(lambda: values.filter(lambda value: value is not None and value != "NaN"))
values = st.recursive(
    plain | quoted | st.builds(scrap, names, plain),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
others = st.builds(
    lambda mime, data: {"output_type": "display_data", "metadata": {}, "data": {mime: data}},
    st.sampled_from(["text/plain", "text/markdown"]),
    quoted,
) | st.builds(
    lambda data: {"output_type": "display_data", "metadata": {}, "data": {"application/json": data}},
    st.dictionaries(keys, values, max_size=3),
)
streams = st.builds(lambda text: {"output_type": "stream", "name": "stdout", "text": text}, quoted)
texts = st.builds(lambda name, text: scrap(name, text, "text"), names, names)
old = st.builds(
    lambda name, data: {
        "output_type": "display_data",
        "metadata": {"papermill": {}},
        "data": {"application/papermill.record+json": {name: data}},
    },
    names,
    data,
)
outputs = st.builds(scrap, names, data) | texts | old | others | streams
cells = st.lists(st.lists(outputs, max_size=3), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(cells=cells, ascii_only=st.booleans())
@example(cells=[[scrap("0", 2**53 + 1)]], ascii_only=False)
@example(cells=[[scrap("0", "0.5"), scrap("1", "[0.5"), scrap("2", 3, "text")]], ascii_only=False)
def test_our_reader_and_scrapbook_agree(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[dict[str, Any]]], ascii_only: bool
) -> None:
    path = stored(tmp_path_factory.getbasetemp() / "generated.ipynb", *cells, ascii_only=ascii_only)
    ours = read_scraps(path)
    expected = theirs(path)
    assert ours.values == expected
    for name, metric in ours.metrics.items():
        assert metric.value == float(expected[name])  # a metric is a double; `values` has every digit of an integer
    assert not ours.metrics.keys() & ours.problems.keys()


def glued() -> list[tuple[str, str, str]]:
    """The rows of docs/metrics.md: what a cell does, what is read, what a gate says."""
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    return [cast(Any, tuple(part.strip() for part in line.strip("|").split("|"))) for line in lines if "`" in line[:4]]


@pytest.mark.soak
def test_what_is_glued_is_read_as_the_guide_says_by_both_readers_and_judged_so(tmp_path: Path) -> None:
    rows = glued()
    assert len(rows) > 20
    imports = "import numpy, pandas\nfrom IPython.display import HTML, display\nfrom scrapbook import glue"
    path = executed(tmp_path / "all.ipynb", imports, *(row[0].strip("`") for row in rows))
    cells = json.loads(path.read_text())["cells"][1:]
    for (source, value, says), cell in zip(rows, cells, strict=True):
        one = stored(tmp_path / "one.ipynb", cell["outputs"])
        ours, name = read_scraps(one), "" if source.startswith('`glue("",') else "x"
        failed = any(output["output_type"] == "error" for output in cell["outputs"])
        assert failed == value.startswith("the cell fails"), source
        if failed or value == "only shown":
            assert not ours.values, source
        else:
            expected = eval(value.split("`")[1], {"pandas": pd})
            assert same(ours.values[name], expected), source
            if value.endswith("`") or "as papermill" in value:
                assert same(theirs(one, "pandas")[name], expected), source
            else:
                assert name not in theirs(one), source
        found = judge(
            {f"s.{key}": metric for key, metric in ours.metrics.items()},
            [Rule(metric=f"s.{name}", min=0.0)],
            problems={f"s.{key}": problem for key, problem in ours.problems.items()},
        )
        assert (found.outcome == "error") == says.startswith("error"), source


def same(found: Any, expected: Any) -> bool:
    """A table is stored as the text of a Parquet file, and only scrapbook's reader makes it a table again."""
    if isinstance(expected, pd.DataFrame):
        table = found if isinstance(found, pd.DataFrame) else pd.read_parquet(io.BytesIO(base64.b64decode(found)))
        return bool(table.equals(expected))
    return bool(found == expected and isinstance(found, type(expected)))


@pytest.mark.soak
def test_plain_glue_and_metric_read_the_same_in_both_readers(tmp_path: Path) -> None:
    path = executed(
        tmp_path / "a.ipynb",
        "import scrapbook, numpy as np\nfrom runner.scraps import metric\nscrapbook.glue('glued', 0.97)",
        "metric('plain', 0.97)",
        "metric('auc', np.float32(0.5), low=np.float64(0.25), high=1, better='higher')\nmetric('rows', np.int64(600))",
        "metric('loss', 0.25, better='lower')",
    )
    assert read_scraps(path).metrics == {
        "glued": Metric(value=0.97),
        "plain": Metric(value=0.97),
        "auc": Metric(value=0.5, low=0.25, high=1.0, better="higher"),
        "rows": Metric(value=600.0),
        "loss": Metric(value=0.25, better="lower"),
    }
    assert theirs(path)["plain"] == theirs(path)["glued"] == 0.97
    assert theirs(path)["rows"] == 600


def test_a_name_is_recorded_once_unless_its_cell_is_run_again() -> None:
    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.manager import KernelManager

    def run(client: BlockingKernelClient, source: str, cell: str | None) -> str:
        """What the kernel says to the cell, sent as Jupyter sends it, or without an id as papermill does."""
        content = {"code": source, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = client.session.msg("execute_request", content, metadata={} if cell is None else {"cellId": cell})
        client.shell_channel.send(message)
        while True:
            reply = client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return str(reply["content"].get("evalue", ""))

    place = tempfile.TemporaryDirectory(
        prefix="ipc-"
    )  # a socket's path must be short, and ports can be taken meanwhile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jupyter_client's own
        manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{place.name}/k")
        manager.start_kernel()
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
    refused = "Metric {} was recorded already in this kernel; give this one a name of its own."
    try:
        assert run(client, "from runner.scraps import metric; metric('auc', 0.5)", "a") == ""
        assert run(client, "metric('auc', 0.6)  # edited, and run again", "a") == ""
        assert run(client, "metric('auc', 0.6)", "b") == refused.format("auc")
        assert run(client, "for n in (1, 2): metric('loop', n)", "c") == refused.format("loop")
        assert run(client, "metric('f1', 0.5)", None) == ""
        assert run(client, "metric('f1', 0.5)", None) == ""
        assert run(client, "metric('f1', 0.6)", None) == refused.format("f1")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        place.cleanup()


def test_what_is_reported_on_the_way_is_one_line_and_no_metric(tmp_path: Path) -> None:
    sources = (
        "from runner.scraps import metric, report\nimport numpy as np",
        "for step in range(3):\n    report('auc', np.float32(step / 4), np.int64(step)); report('loss', -step, step)",
        "report('auc', 0.9, 7); metric('auc', 0.95)",
    )
    path = executed(tmp_path / "nb.ipynb", *sources)
    outputs = [cell["outputs"] for cell in json.loads(path.read_text())["cells"]]
    assert [[output["data"]["text/plain"] for output in shown if "text/plain" in output["data"]] for shown in outputs] == [
        [], [["auc 0.5 at step 2"], ["loss -2 at step 2"]], [["auc 0.9 at step 7"]]
    ]  # fmt: skip
    ours = read_scraps(path)
    assert (ours.metrics, ours.problems) == ({"auc": Metric(value=0.95)}, {})
    assert theirs(path)["loss.report"] == {"value": -2.0, "step": 2}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("auc", 0.5, 1.5), TypeError, "step is 1.5, which is not a whole number"),
        (("auc", 0.5, "3"), TypeError, "step is '3', which is not a whole number"),
        (("auc", 0.5, -1), ValueError, "step is -1, which is below 0"),
        (("auc", math.nan, 1), ValueError, "not finite"),
        (("auc", "0.5", 1), TypeError, "not a number"),
        (("a.b", 0.5, 1), ValueError, "must be a Python name"),
    ],
)
def test_a_report_that_cannot_be_compared_is_refused(arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        scraps.report(*arguments)


def test_figures_and_tables_are_shown_and_read_back(tmp_path: Path) -> None:
    draw = (
        "fig, ax = plt.subplots(figsize=(2, 1))\nax.plot([0, 1], [0, 1])\n"
        "figure('line', fig, alt='A rising line', caption='It rises')"
    )
    path = executed(
        tmp_path / "a.ipynb",
        "import matplotlib.pyplot as plt, numpy as np, pandas as pd\nfrom runner.scraps import figure, table",
        draw,
        draw,
        "frame = pd.DataFrame({'n': np.array([1, 2]), 'share': [0.5, np.nan]}, index=pd.Index(['a', 'b'], name='kind'))\n"
        "table('parts', frame, caption='Two parts')",
        "empty = plt.figure()\nfigure('empty', empty, alt=' ')",
    )
    figures, tables = read_figures(path)
    assert [(one.name, one.mime, one.alt, one.caption, one.cell) for one in figures] == [
        ("line", "image/png", "A rising line", "It rises", 2),
        ("line", "image/png", "A rising line", "It rises", 3),
    ]
    assert base64.b64decode(figures[0].data).startswith(b"\x89PNG")
    assert figures[0].data == figures[1].data
    (table,) = tables
    assert (table.name, table.columns, table.caption, table.cell) == ("parts", ["kind", "n", "share"], "Two parts", 4)
    assert table.rows == [["a", 1, 0.5], ["b", 2, None]]
    cells = json.loads(path.read_text())["cells"]
    assert [len(cell["outputs"]) for cell in cells[1:3]] == [1, 1]  # a closed figure is not shown a second time
    said = [output["evalue"] for output in cells[4]["outputs"] if output["output_type"] == "error"]
    assert said == ["Figure empty: alt text is needed; say in a sentence what the figure shows."]
    assert read_scraps(path).metrics == {}
    assert read_scraps(path).problems == {}


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), "0.9", None, [0.9], np.array([0.9]), 1j, np.timedelta64(5, "ns"), np.datetime64("NaT")],
)
def test_what_is_no_number_is_refused_where_it_is_recorded(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Metric auc is .*, which is not a number"):
        scraps.metric("auc", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), 10**400])
def test_numbers_a_gate_cannot_judge_are_refused_where_they_are_recorded(value: Any) -> None:
    with pytest.raises(ValueError, match="Metric auc is "):
        scraps.metric("auc", value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": 0.1}, "both low and high"),
        ({"high": 0.1}, "both low and high"),
        ({"low": 0.9, "high": 0.1}, "low 0.9 is above high 0.1"),
        ({"low": math.nan, "high": 1}, "auc's low is nan"),
        ({"better": "bigger"}, "better is 'higher' or 'lower'"),
    ],
)
def test_half_and_reversed_intervals_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scraps.metric("auc", 0.5, **options)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "1st", 3])
def test_a_name_the_gate_could_not_write_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="must be a Python name"):
        scraps.metric(name, 0.5)


def test_in_a_plain_script_values_are_checked_and_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib as mpl
    import pandas as pd

    mpl.use("agg")
    from matplotlib import pyplot as plt

    scraps.metric("auc", 0.5, low=0.4, high=0.6)
    scraps.metric("auc", 0.5)
    scraps.report("auc", 0.5, 3)
    scraps.figure("line", plt.figure(), alt="Nothing")
    scraps.table("parts", pd.DataFrame({"n": [1]}))
    assert capsys.readouterr() == ("", "")
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nan", "it is 'nan', which is not a number; NaN and infinity arrive as such text"),
        ("-inf", "it is '-inf', which is not a number; NaN and infinity arrive as such text"),
        (True, "it is True, which is not a number"),
        (None, "it is None, which is not a number"),
        ({"a": 1}, "it is {'a': 1}, which is not a number"),
        (10**400, "it is 1000"),
    ],
    ids=["nan", "infinity", "true", "null", "object", "too large"],
)
def test_what_is_recorded_and_no_number_is_a_problem_and_never_a_metric(tmp_path: Path, value: Any, said: str) -> None:
    found = read_scraps(stored(tmp_path / "a.ipynb", [scrap("auc", value)]))
    assert found.metrics == {}
    assert found.problems["auc"].startswith(said)
    assert found.values == {"auc": value}


def test_a_literal_nan_in_the_file_is_a_problem(tmp_path: Path) -> None:
    found = read_scraps(stored(tmp_path / "a.ipynb", [scrap("auc", math.nan), scrap("f1", 0.5)]))
    assert found.metrics == {"f1": Metric(value=0.5)}
    assert found.problems == {"auc": "it is 'nan', which is not a number; NaN and infinity arrive as such text"}


def test_a_name_recorded_twice_is_a_problem_that_names_the_cells(tmp_path: Path) -> None:
    found = read_scraps(stored(tmp_path / "a.ipynb", [], [scrap("auc", 0.5)], [], [scrap("auc", 0.9)]))
    assert found.metrics == {}
    assert found.problems == {"auc": "it was recorded twice, in cells [2] and [4]; record it once"}


@pytest.mark.parametrize(
    "interval",
    [{"low": 0.1}, {"low": 2, "high": 1}, {"low": "nan", "high": 1}, {"better": "up"}, {"middle": 1}, [0.1, 0.2], None],
)
def test_a_malformed_interval_is_a_problem_of_its_metric(tmp_path: Path, interval: Any) -> None:
    found = read_scraps(stored(tmp_path / "a.ipynb", [scrap("auc", 0.5), scrap("auc.interval", interval)]))
    assert found.metrics == {}
    assert found.problems["auc"].startswith("its interval is ")


@pytest.mark.parametrize("content", [b"", b"{", b'{"cells": 1}', b"[]", b"\xff\xfe"])
def test_a_file_that_is_no_notebook_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ipynb"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.ipynb is not a notebook that can be read"):
        read_scraps(path)
