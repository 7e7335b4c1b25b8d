"""The notebooks: their style, their order by hand, their data checks, and what they promise of the model."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import notebook_rules
from support.commands import environment
from support.notebook_rules import cells, source
from support.one_kernel import Execute, one_kernel
from support.projects import REAL_TABLE, ROOT
from support.some import some

from runner.gate import judge
from runner.notebook.recorded import read_figures, read_scraps
from runner.records import Metric, Rule, encode

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TABLE = ROOT / "data" / "churn.csv"
TABLES = [TABLE, *([REAL_TABLE] if REAL_TABLE.exists() else [])]


def name(path: Path) -> str:
    return path.stem


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)


def test_there_are_four_notebooks_and_one_that_watches() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_data", "02_train", "03_evaluate", "04_register", "05_monitor"]


@each_notebook
def test_a_notebook_keeps_the_rules_of_notebooks(path: Path) -> None:
    notebook_rules.check(path)


def test_the_script_makes_the_table_byte_for_byte(tmp_path: Path) -> None:
    script = shutil.copy(TABLE.with_name("make_churn.py"), tmp_path)
    subprocess.run([sys.executable, script], check=True, capture_output=True)
    assert (tmp_path / "churn.csv").read_bytes() == TABLE.read_bytes()
    assert TABLE.stat().st_size < 700_000


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execute]:
    with one_kernel(ROOT / "notebooks", tmp_path_factory.mktemp("executed")) as run:
        yield run


def data(execute: Execute, folder: Path, **parameters: Any) -> dict[str, Metric]:
    sides = {side: folder / f"{side}.parquet" for side in ("train", "validation", "test")}
    return execute("01_data", **{"source": TABLE, **sides, **parameters})


def train(execute: Execute, folder: Path, model: str = "model", **parameters: Any) -> dict[str, Metric]:
    sides = {side: folder / f"{side}.parquet" for side in ("train", "validation")}
    return execute("02_train", **{**sides, "model": folder / model, **parameters})


def evaluate(execute: Execute, folder: Path, **parameters: Any) -> dict[str, Metric]:
    given = {"test": folder / "test.parquet", "model": folder / "model", "predictions": folder / "predictions.parquet"}
    return execute("03_evaluate", **{**given, **parameters})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(execute: Execute, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three sides of our table and a quickly trained model."""
    folder = tmp_path_factory.mktemp("made")
    data(execute, folder)
    train(execute, folder, rounds=30)
    return folder


def lines() -> list[str]:
    return TABLE.read_text(encoding="utf-8").splitlines()


def with_value(row: int, column: str, value: str) -> bytes:
    """The table with one value replaced; `row` counts customers from 1."""
    made = [line.split(",") for line in lines()]
    made[row][made[0].index(column)] = value
    return "\n".join(",".join(line) for line in made).encode() + b"\n"


def with_header(change: Callable[[str], str]) -> bytes:
    return "\n".join([change(lines()[0]), *lines()[1:]]).encode()


def kept(wanted: Callable[[int, str], bool]) -> bytes:
    header, *rows = lines()
    return "\n".join([header, *(row for number, row in enumerate(rows) if wanted(number, row))]).encode()


FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", r"is empty\. It needs a header and rows"),
    "a header without rows": (lambda: lines()[0].encode(), "has a header and no rows"),
    "a column under another name": (
        lambda: with_header(lambda header: header.replace("Day Mins", "Day Minutes")),
        r"not the known 21\.\n- missing: \['Day Mins'\]\n\+ unexpected: \['Day Minutes'\]",
    ),
    "a column name that is there twice": (
        lambda: with_header(lambda header: header.replace("Eve Mins", "Day Mins")),
        r"the header has \['Day Mins'\] more than once",
    ),
    "a row with too many values": (lambda: b"\n".join([lines()[0].encode(), lines()[1].encode() + b",1"]), "22 values"),
    "a quote that never ends": (lambda: with_value(9, "State", '"OH'), "Check the quotes there"),
    "one class only": (lambda: kept(lambda _, row: row.endswith("False.")), "all .* customers have Churn"),
    "too few of one class": (
        lambda: kept(lambda number, row: row.endswith("False.") or number < 100),
        "would have only .* customers of one kind; 20 are needed",
    ),
    "utf-16": (lambda: TABLE.read_text(encoding="utf-8").encode("utf-16"), "is not utf-8: byte 0 is 0xff"),
    "utf-16 without a mark": (lambda: TABLE.read_text(encoding="utf-8").encode("utf-16-le"), "line 1: a NUL byte"),
    "latin-1": (lambda: with_value(2, "State", "Å").decode().encode("latin-1"), "is not utf-8: byte .* is 0xc5"),
    "a NUL byte": (lambda: with_value(3, "State", "O\0"), "line 4: a NUL byte"),
    "text for a number": (
        lambda: with_value(7, "Day Mins", "many"),
        "customer 7, Day Mins: 'many' is not a number of 0 or more",
    ),
    "infinity": (lambda: with_value(7, "Day Mins", "inf"), "customer 7, Day Mins: 'inf' is not a number of 0 or more"),
    "a number below zero": (
        lambda: with_value(7, "Eve Calls", "-1"),
        "customer 7, Eve Calls: '-1' is not a number of 0 or more",
    ),
    "no phone number": (lambda: with_value(5, "Phone", " "), "customer 5: Phone is blank"),
    "an answer that is none": (
        lambda: with_value(4, "Churn?", "perhaps"),
        "customer 4, Churn.*neither True. nor False",
    ),
    "a plan that is neither yes nor no": (lambda: with_value(4, "VMail Plan", "2"), "'2' is neither yes nor no"),
    "the same row twice": (
        lambda: "\n".join([*lines(), lines()[7]]).encode(),
        r"customers \[7, 5001\] are the same row",
    ),
    "a key that is none": (
        lambda: re.sub(r"\d{3}-\d{4}", "555-0100", TABLE.read_text(encoding="utf-8")).encode(),
        "5000 customers share a Phone",
    ),
    "a column that is mostly blank": (
        lambda: re.sub(r",[\d.]+,([A-Z][a-z]+\.)", r",,\1", TABLE.read_text(encoding="utf-8")).encode(),
        "100% of CustServ Calls is blank",
    ),
}


@pytest.mark.cases(4)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_refused_with_what_is_wrong(execute: Execute, tmp_path: Path, fault: str) -> None:
    make, said = FAULTS[fault]
    table = tmp_path / "table.csv"
    table.write_bytes(make())
    with pytest.raises(Exception, match=said) as raised:
        data(execute, tmp_path, source=table)
    assert type(raised.value).__name__ == "CellExecutionError"
    assert "ValueError" in str(raised.value)
    assert not (tmp_path / "train.parquet").exists()


@pytest.mark.soak
def test_zeros_and_archives_are_no_table_however_large(execute: Execute, tmp_path: Path) -> None:
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(600_000_000)
    for name, compress in (("bomb.csv", gzip.compress), ("bomb.zip", zipped)):
        (tmp_path / name).write_bytes(compress(b"0" * 50_000_000))
    for name in ("huge.csv", "bomb.csv", "bomb.zip"):
        with pytest.raises(Exception, match=r"is not utf-8|a NUL byte"):
            data(execute, tmp_path, source=tmp_path / name)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("churn.csv", content)
    return buffer.getvalue()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"\xef\xbb\xbf" + TABLE.read_bytes().replace(b"\n", b"\r\n") + b" \t\r\n  ", "utf-8"),
        (TABLE.read_text(encoding="utf-8").encode("utf-16"), "utf-16"),
        (re.sub(rb",(\d{3}),(\d{3}-\d{4})", rb",\1.0,\2", TABLE.read_bytes().replace(b"True.", b"1")), "latin-1"),
    ],
    ids=["mark, CRLF and blank last lines", "utf-16 as declared", "area codes as 657.0 and answers as 1"],
)
def test_the_same_table_in_another_guise_gives_the_same_bytes(
    execute: Execute, made: Path, tmp_path: Path, content: bytes, encoding: str
) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    data(execute, tmp_path, source=tmp_path / "table.csv", encoding=encoding)
    for side in ("train", "validation", "test"):
        assert (tmp_path / f"{side}.parquet").read_bytes() == (made / f"{side}.parquet").read_bytes()


def test_a_quoted_line_break_is_one_row_and_a_blank_a_missing_value(execute: Execute, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(with_value(2, "State", '"New\nYork"').replace(b",408,", b",,", 10))
    found = data(execute, tmp_path, source=tmp_path / "table.csv")
    assert found["rows"] == Metric(value=5000)
    assert found["blank_values"] == Metric(value=10)


def test_no_customer_changes_side_when_the_table_grows(execute: Execute, made: Path, tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "table.csv").write_bytes(kept(lambda number, _: number % 2 == 0))
    data(execute, tmp_path, source=tmp_path / "table.csv")
    for side in ("train", "validation", "test"):
        before = set(pd.read_parquet(tmp_path / f"{side}.parquet")["Phone"])
        after = set(pd.read_parquet(made / f"{side}.parquet")["Phone"])
        assert before < after


@pytest.mark.soak
def test_equal_seeds_give_equal_models_whatever_the_threads(execute: Execute, made: Path) -> None:
    train(execute, made, "one", rounds=30, nthread=1)
    train(execute, made, "two", rounds=30, nthread=2)
    train(execute, made, "other", rounds=30, seed=43)
    assert contents(made / "one") == contents(made / "two") == contents(made / "model")
    assert contents(made / "other") != contents(made / "model")


@pytest.mark.soak
def test_parts_give_the_same_model_and_the_same_metrics_as_one_piece(
    execute: Execute, made: Path, tmp_path: Path
) -> None:
    """Of 5,000 customers in blocks of 1,100, and with XGBoost's external memory."""
    import pandas as pd
    import pyarrow.parquet as pq
    import xgboost

    whole = data(execute, tmp_path / "whole")
    parts = data(execute, tmp_path, part_rows=1100)
    assert parts == whole
    for side in ("train", "validation", "test"):
        frame = pd.read_parquet(made / f"{side}.parquet")
        numbers = frame.select_dtypes("int64").columns
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / f"{side}.parquet"), frame.astype(dict.fromkeys(numbers, "float64"))
        )
        assert pq.ParquetFile(tmp_path / f"{side}.parquet").num_row_groups == 5
    train(execute, tmp_path, rounds=30)
    boosters = [xgboost.Booster(model_file=folder / "model" / "model.ubj") for folder in (made, tmp_path)]
    one, other = (re.sub(r":int|:float", "", str(booster.get_dump())) for booster in boosters)
    assert one == other
    one = evaluate(execute, tmp_path, predictions=tmp_path / "one.parquet")
    several = evaluate(execute, tmp_path, test=made / "test.parquet", champion=made / "model")
    assert {name: several[name] for name in one} == one
    assert several["auc_gain"] == Metric(value=0, low=0, high=0, better="higher")  # the same trees


@pytest.mark.soak
def test_intervals_from_some_of_the_customers_are_about_as_wide_as_those_from_all(
    execute: Execute, made: Path, tmp_path: Path
) -> None:
    whole = evaluate(execute, made, predictions=tmp_path / "one.parquet")
    some = evaluate(execute, made, predictions=tmp_path / "two.parquet", bootstrap_rows=300)
    for name in ("auc", "accuracy", "log_loss", "brier"):
        assert some[name].value == whole[name].value
        low, high = (found[name].low for found in (some, whole)), (found[name].high for found in (some, whole))
        (few, all_of_them) = (high - low for low, high in zip(low, high, strict=True))
        assert 0.6 < few / all_of_them < 1.6


def test_a_missing_answer_is_not_taken_for_another() -> None:
    """As a table that is not CSV may have one."""
    import pandas as pd

    from runner.model import as_category

    (cell,) = [
        one for one in cells(ROOT / "notebooks" / "01_data.ipynb", "code") if "def checked_target" in source(one)
    ]
    scope: dict[str, Any] = {"pd": pd, "as_category": as_category, "TARGET": "Churn?", "source": "t.parquet"}
    exec(source(cell), scope)
    assert scope["checked_target"](pd.DataFrame({"Churn?": ["True.", "False."]})).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"customer 2, Churn\?: .* is neither True\. nor False"):
        scope["checked_target"](pd.DataFrame({"Churn?": ["True.", None, "False."]}))


def test_training_refuses_rows_of_another_split(execute: Execute, made: Path) -> None:
    with pytest.raises(Exception, match="customers in train do not belong there by split_seed 8"):
        train(execute, made, "never", split_seed=8)
    assert not (made / "never").exists()


@pytest.mark.soak
@pytest.mark.parametrize("table", some(TABLES, TABLES[:1]), ids=name)
def test_both_tables_pass_the_gate_with_margin(execute: Execute, tmp_path: Path, table: Path) -> None:
    data(execute, tmp_path, source=table)
    train(execute, tmp_path)
    found = evaluate(execute, tmp_path)
    assert found["auc"].low is not None
    assert found["auc"].low > 0.9
    assert found["accuracy"].value > 0.85
    assert {"pr_auc", "f1", "log_loss", "brier", "test_rows", "unseen_categories"} < found.keys()
    assert not {"auc_gain", "champion_seen"} & found.keys()


@pytest.mark.soak
def test_a_model_that_asks_no_question_is_shown_as_one(execute: Execute, made: Path) -> None:
    """As 30 customers give it: the figure of what the trees gain from has no bar, and no limit that is not a number."""
    train(execute, made, "nothing", rounds=2, gamma=1e9)
    found = evaluate(execute, made, model=made / "nothing")
    assert found["auc"] == Metric(value=0.5, low=0.5, high=0.5, better="higher")


@pytest.mark.soak
def test_the_measures_of_a_large_tables_samples_are_scikit_learns_and_take_little_memory() -> None:
    """60,000 customers, 150 samples of which a few are compared."""
    import numpy as np
    from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, log_loss, roc_auc_score

    from runner.tabular import measures, resample

    rows, samples, chance = 60_000, 150, np.random.default_rng(0)
    probability = chance.random(rows).round(4)
    left = (chance.random(rows) < probability).astype("int8")
    hits = (probability >= 0.5).astype("int8")
    sure = np.clip(probability, 1e-15, 1 - 1e-15)
    scope = {"np": np, "seed": 42, "resamples": samples, "confidence": 0.95, "probability": probability, "left": left}
    scope |= {
        "hits": hits,
        "threshold": 0.5,
        "bootstrap_rows": rows,
        "measures": measures,
        "resample": resample,
        "partial": partial,
    }
    scope |= {"roc_auc_score": roc_auc_score, "average_precision_score": average_precision_score}
    tracemalloc.start()
    for cell in cells(ROOT / "notebooks" / "03_evaluate.ipynb", "code"):
        if cell["id"] in ("samples", "agree"):
            exec(source(cell), scope)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 600e6  # the weights of all at once are 72 MB, a dozen times over
    draws, every = np.random.default_rng(42), np.arange(rows)
    for at in range(4):
        drawn = draws.integers(0, rows, rows) if at else every
        one, said = left[drawn], probability[drawn]
        expected = {
            "auc": roc_auc_score(one, said), "pr_auc": average_precision_score(one, said),
            "accuracy": (one == hits[drawn]).mean(), "f1": f1_score(one, hits[drawn]),
            "log_loss": log_loss(one, sure[drawn]), "brier": brier_score_loss(one, said),
        }  # fmt: skip
        weights = np.bincount(drawn, minlength=rows)[None].astype("float64")
        found = {name: value for name, (value,) in scope["all_measures"](weights, every).items()}
        assert found == pytest.approx(expected, rel=1e-9)
        if not at:
            assert {name: one["value"] for name, one in scope["measured"].items()} == found


@pytest.mark.soak
def test_rows_that_a_champion_may_have_seen_are_left_out_and_too_few_give_no_gain(
    execute: Execute, made: Path, tmp_path: Path
) -> None:
    data(execute, tmp_path, split_seed=8)
    train(execute, tmp_path, rounds=5, split_seed=8)
    found = evaluate(execute, made, champion=tmp_path / "model")
    assert found["champion_seen"].value > 0.8 * found["test_rows"].value
    assert "auc_gain" not in found
    found = evaluate(execute, made, champion=tmp_path / "model", min_clean_rows=20)
    assert found["auc_gain"].better == "higher"


def test_categories_the_model_has_not_seen_are_missing_values_and_counted(
    execute: Execute, made: Path, tmp_path: Path
) -> None:
    import pandas as pd

    customers = pd.read_parquet(made / "test.parquet")
    customers.loc[:2, "State"] = "ZZ"
    customers.to_parquet(tmp_path / "test.parquet")
    found = evaluate(execute, made, test=tmp_path / "test.parquet")
    assert found["unseen_categories"] == Metric(value=3)


BY_HAND = """
import pathlib, sys, warnings
warnings.simplefilter("ignore")
import nbclient, nbformat
for path in sorted(pathlib.Path().glob("0*.ipynb")):
    made = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(made, kernel_name="python3", timeout=120).execute()
    nbformat.write(made, pathlib.Path(sys.argv[1], path.name))
"""
PAPERMILL = """
import json, pathlib, sys, warnings
warnings.simplefilter("ignore")
import papermill
for name, parameters in json.loads(sys.argv[2]).items():
    made = str(pathlib.Path(sys.argv[1], name))
    papermill.execute_notebook(name, made, parameters, kernel_name="python3", progress_bar=False)
"""


@pytest.mark.soak
def test_by_hand_and_under_plain_papermill_they_run_in_order_and_make_the_same_model(tmp_path: Path) -> None:
    notebooks = tmp_path / "project" / "notebooks"
    shutil.copytree(
        ROOT / "notebooks", notebooks, ignore=shutil.ignore_patterns("work", ".ipynb_checkpoints", "__pycache__")
    )
    shutil.copytree(ROOT / "data", tmp_path / "project" / "data")
    by_hand, papermill, verdict = tmp_path / "by-hand", tmp_path / "papermill", tmp_path / "verdict.json"
    metrics = {"evaluate.auc": Metric(value=0.95, low=0.9, high=0.99)}
    verdict.write_bytes(encode(judge(metrics, [Rule(metric="evaluate.auc", min=0.85)])))
    sides = {side: str(papermill / f"{side}.parquet") for side in ("train", "validation", "test")}
    model, scored = str(papermill / "model"), str(papermill / "scored.parquet")
    given = {
        "01_data.ipynb": sides,
        "02_train.ipynb": {"train": sides["train"], "validation": sides["validation"], "model": model, "nthread": 1},
        "03_evaluate.ipynb": {"test": sides["test"], "model": model, "predictions": scored, "champion": model},
        "04_register.ipynb": {"model": model, "predictions": scored, "verdict": str(verdict)},
    }
    running = []
    for script, made in ((BY_HAND, by_hand), (PAPERMILL, papermill)):
        made.mkdir()
        line = [sys.executable, "-c", script, str(made), json.dumps(given)]
        running.append(
            subprocess.Popen(line, cwd=notebooks, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-3000:]
    assert contents(notebooks / "work" / "train" / "model") == contents(papermill / "model")
    assert "Nothing is registered" in _texts(by_hand / "04_register.ipynb")
    assert "No gate has judged this model." in _texts(by_hand / "04_register.ipynb")
    card = _texts(papermill / "04_register.ipynb")
    assert "evaluate.auc is 0.95, 0.1 above the required minimum 0.85." in card
    assert "| evaluate.auc | 0.9500 | 0.9000 to 0.9900 |" in card
    found = read_scraps(papermill / "03_evaluate.ipynb").metrics
    assert found["auc_gain"] == Metric(value=0, low=0, high=0, better="higher")  # it was given itself as champion
    assert found["champion_seen"] == Metric(value=0)
    figures, tables = read_figures(by_hand / "03_evaluate.ipynb")
    assert [figure.name for figure in figures] == ["roc_pr", "calibration", "confusion"]
    assert all(figure.alt and figure.caption for figure in figures)
    assert [table.name for table in tables] == ["headline", "slices"]


def _texts(path: Path) -> str:
    shown = [output.get("data", {}) for cell in cells(path, "code") for output in cell["outputs"]]
    return "\n".join("".join(text) for data in shown for mime, text in data.items() if mime.startswith("text/"))


FIRST = """
import json, sys
from functools import partial
from pathlib import Path
for name in sys.argv[1:]:
    names = {}
    try:
        for cell in json.loads(Path(name).read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.soak
def test_in_a_fresh_clone_a_notebook_says_which_one_to_run_first(tmp_path: Path) -> None:
    names = [Path(shutil.copy(path, tmp_path)).name for path in NOTEBOOKS if not path.name.startswith("01")]
    line = [sys.executable, "-W", "ignore", "-c", FIRST, *names]

    def said() -> list[str]:
        done = subprocess.run(
            line, cwd=tmp_path, env=environment({"MPLBACKEND": "agg"}), capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    assert said() == [
        "FileNotFoundError: There is no work/data/train.parquet. Run 01_data.ipynb first, which writes it.",
        "FileNotFoundError: There is no work/data/test.parquet. Run 01_data.ipynb first, which writes it.",
        "FileNotFoundError: There is no work/train/model. Run 02_train.ipynb first, which writes it.",
        "FileNotFoundError: There is no work/data/test.parquet. Run 01_data.ipynb first, which writes it.",
    ]
    (tmp_path / "work/data").mkdir(parents=True)
    for side in ("test", "train"):
        (tmp_path / f"work/data/{side}.parquet").touch()
    assert said()[:2] == [
        "FileNotFoundError: There is no work/data/validation.parquet. Run 01_data.ipynb first, which writes it.",
        "FileNotFoundError: There is no work/train/model. Run 02_train.ipynb first, which writes it.",
    ]
    (tmp_path / "work/train/model").mkdir(parents=True)
    assert "There is no work/evaluate/predictions.parquet. Run 03_evaluate.ipynb first" in said()[-2]
