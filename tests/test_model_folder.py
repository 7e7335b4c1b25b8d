"""A model folder scores raw records: what it takes, what it refuses, and that it is what was saved."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_folders import SPLIT, records, saved, trained

import runner.model
from runner.content import artifact
from runner.errors import NewerStore, Refused, RunnerError, Tampered, UsageError
from runner.model.files import check_format
from runner.model.signature import BadRecords, Column, Signature, SplitRule
from runner.records import decode, encode

CODE = """
import pandas as pd


def transform(frame):
    return pd.DataFrame({"rate": frame["calls"] / (frame["minutes"] + 1), "plan": frame["plan"]})
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def folder(origin: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(origin, tmp_path / "model"))


@pytest.fixture(scope="module")
def model(origin: Path) -> runner.model.Model:
    return runner.model.load(origin)


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    """A model of features that a module computes."""
    code = tmp_path / "src" / "features.py"
    code.parent.mkdir()
    code.write_text(CODE, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    raw = records()
    folder = tmp_path / "coded" / "model"
    runner.model.save(folder, trained(scope["transform"](raw)), raw, target="left", code=code)
    return folder


def test_contributions_lie_beside_the_model_the_largest_first(folder: Path, tmp_path: Path) -> None:
    given = {"calls": np.float32(0.5), "plan": 2, "minutes": 0.0}
    explained = saved(tmp_path / "explained", contributions=given)
    assert json.loads((explained / "contributions.json").read_text()) == {"plan": 2.0, "calls": 0.5, "minutes": 0.0}
    assert (explained / "model.ubj").read_bytes() == (folder / "model.ubj").read_bytes()
    assert (
        runner.model.load(explained).predict(records()).tolist()
        == runner.model.load(folder).predict(records()).tolist()
    )
    for wrong in ({"phone": 1.0}, {"calls": float("nan")}, {"calls": -1.0}):
        with pytest.raises(UsageError, match="must be a column of the model"):
            saved(tmp_path / "explained", contributions=wrong)


# The code of the features


def test_the_code_of_the_features_is_frozen_with_the_model(with_code: Path, tmp_path: Path) -> None:
    before = runner.model.load(with_code).predict(records())
    (tmp_path / "src" / "features.py").write_text("def transform(frame):\n    return frame.iloc[:, :0]\n")
    model = runner.model.load(with_code)
    assert model.predict(records()).tolist() == before.tolist()
    assert [column.name for column in model.signature.columns] == ["minutes", "calls", "plan", "roaming"]
    assert [column.name for column in model.signature.features or []] == ["rate", "plan"]
    sample = pd.DataFrame([model.signature.sample_request])
    assert float(model.predict(sample)[0]) == model.signature.sample_prediction
    assert sorted(entry.name for entry in with_code.iterdir()) == ["features.py", "model.ubj", "signature.json"]


def test_the_code_may_define_classes_and_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    code = tmp_path / "features.py"
    code.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Rate:\n    per: float\n"
        "\n\ndef transform(frame):\n    return frame[['calls']] / Rate(per=2.0).per\n"
    )
    raw = records()
    runner.model.save(tmp_path / "model", trained(raw[["calls"]] / 2), raw, target="left", code=code)
    assert runner.model.load(tmp_path / "model").predict(raw).shape == (120,)
    assert sorted(entry.name for entry in (tmp_path / "model").iterdir()) == [
        "features.py",
        "model.ubj",
        "signature.json",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["features.py", "model"]


@pytest.mark.parametrize(("made", "said"), [("frame.iloc[::2]", "gave 60 rows"), ("frame['calls']", "gave a Series")])
def test_code_that_loses_rows_is_refused(tmp_path: Path, made: str, said: str) -> None:
    (tmp_path / "features.py").write_text(f"def transform(frame):\n    return {made}\n")
    raw = records()
    with pytest.raises(UsageError, match=f"table of 120 rows, and {said}"):
        runner.model.save(tmp_path / "model", trained(raw), raw, target="left", code=tmp_path / "features.py")


def test_features_that_the_code_cannot_make_are_named_too(with_code: Path) -> None:
    raw = records(10)
    raw.loc[3, "minutes"] = -1  # divides by zero
    with pytest.raises(BadRecords, match="Row 4, column rate"):
        runner.model.load(with_code).predict(raw)


# What is in the folder


def test_equal_arguments_give_equal_bytes_and_replace_what_was_there(folder: Path, tmp_path: Path) -> None:
    before = artifact(folder, name="model")
    (folder / "left-over.txt").write_text("from before")
    saved(folder)
    assert artifact(folder, name="model") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["mein Modell", "模型", "a#b?c%20d", "'quoted' \"twice\""])
def test_a_folder_may_have_any_name(origin: Path, tmp_path: Path, name: str) -> None:
    place = saved(tmp_path / name / name)
    assert runner.model.load(place).predict(records()).tolist() == runner.model.load(origin).predict(records()).tolist()
    assert artifact(place, name="model") == artifact(origin, name="model")


@pytest.mark.parametrize("name", ["model.ubj", "signature.json", "features.py"])
def test_a_folder_with_a_changed_byte_is_refused(with_code: Path, name: str) -> None:
    sha256 = artifact(with_code, name="model").sha256
    assert runner.model.load(with_code, sha256=sha256).signature.target == "left"
    content = (with_code / name).read_bytes()
    for place in (1, len(content) // 2, len(content) - 1):
        (with_code / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Tampered, match=r"altered|not the code"):
            runner.model.load(with_code, sha256=sha256)
    (with_code / name).write_bytes(content)
    (with_code / "more.txt").write_text("")
    with pytest.raises(Tampered, match="altered"):
        runner.model.load(with_code, sha256=sha256)


@pytest.mark.parametrize("change", [lambda path: path.write_text(CODE + "# more\n"), Path.unlink])
def test_other_code_than_it_was_trained_with_is_refused(with_code: Path, change: Callable[[Path], object]) -> None:
    change(with_code / "features.py")
    with pytest.raises(Tampered, match=r"features\.py is not the code"):
        runner.model.load(with_code)


PICKLED: dict[str, bytes] = {
    **{f"protocol-{number}": pickle.dumps({"trees": [1, 2]}, protocol=number) for number in range(6)},
    "gzip": gzip.compress(b"x"),
    "zip": b"PK\x03\x04rest",
    "zlib": b"\x78\x9crest",
    "text": b"no model at all",
    "empty": b"",
}


@pytest.mark.parametrize("kind", PICKLED)
def test_a_pickle_or_an_archive_is_no_model(folder: Path, kind: str) -> None:
    (folder / "model.ubj").write_bytes(PICKLED[kind])
    with pytest.raises(Refused):
        runner.model.load(folder)
    with pytest.raises(Refused):
        check_format(folder)


@pytest.mark.parametrize("name", ["scaler.pkl", "scaler.joblib", "deep/scaler.pickle", "scaler.bin", "scaler"])
def test_a_pickle_beside_the_model_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({"mean": 3}))
    with pytest.raises(Refused, match=r"scaler.* pickle"):
        runner.model.load(folder)


@pytest.mark.parametrize("number", range(6))
def test_a_pickle_is_known_by_its_first_bytes(folder: Path, number: int) -> None:
    import collections

    made = [{"a": 1}, [1], (1,), collections.OrderedDict(a=1), Path("x"), 3, "text"]
    for value in made:
        (folder / "scaler.bin").write_bytes(pickle.dumps(value, protocol=number))
        with pytest.raises(Refused, match="pickle"):
            check_format(folder)


@pytest.mark.parametrize("size", [0, 1, 50, -1])
def test_a_truncated_model_is_refused(folder: Path, size: int) -> None:
    content = (folder / "model.ubj").read_bytes()
    (folder / "model.ubj").write_bytes(content[:size])
    with pytest.raises(Refused):
        runner.model.load(folder)


def test_a_folder_that_is_no_model_is_said(folder: Path, tmp_path: Path) -> None:
    for name in ("model.ubj", "signature.json"):
        broken = Path(shutil.copytree(folder, tmp_path / f"without-{name}"))
        (broken / name).unlink()
        with pytest.raises(RunnerError, match=r"runner\.model\.save"):
            runner.model.load(broken)
    with pytest.raises(UsageError, match="is not a model folder"):
        runner.model.load(tmp_path / "nowhere")


def test_a_model_as_json_loads_too(folder: Path) -> None:
    raw = records()
    expected = runner.model.load(folder).predict(raw)
    trained(raw).save_model(folder / "model.json")
    (folder / "model.ubj").unlink()
    assert runner.model.load(folder).predict(raw).tolist() == expected.tolist()


def test_a_link_out_of_the_folder_is_not_taken_for_its_bytes(folder: Path, tmp_path: Path) -> None:
    sha256 = artifact(folder, name="model").sha256
    (folder / "model.ubj").rename(tmp_path / "elsewhere.ubj")
    (folder / "model.ubj").symlink_to(tmp_path / "elsewhere.ubj")
    with pytest.raises(RunnerError, match="link"):
        runner.model.load(folder, sha256=sha256)


@pytest.mark.parametrize(("change", "error"), [({"format": 99}, NewerStore), ({"format": 99, "more": 1}, NewerStore), ({"more": 1}, Tampered), ({"target": 3}, Tampered)])  # fmt: skip
def test_a_signature_that_cannot_be_read_is_refused(folder: Path, change: dict[str, Any], error: type) -> None:
    path = folder / "signature.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=r"signature\.json"):
        runner.model.load(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frame": lambda raw: raw.iloc[:0]}, "no rows"),
        ({"frame": lambda raw: raw.drop(columns="calls")}, "calls"),
        ({"frame": lambda raw: raw.assign(more=1.0)}, "more"),
        ({"frame": lambda raw: raw.assign(calls=pd.Timestamp("2026-01-01"))}, "calls"),
        ({"frame": lambda raw: raw.rename(columns={"calls": 3})}, "3"),
        ({"split": {"seed": 7}}, "split"),
        ({"code": "x = 1\n"}, "no function transform"),
        ({"code": "def transform(frame):\n    return frame.drop(columns='calls')\n"}, "calls"),
    ],
)
def test_what_could_not_score_its_own_sample_is_not_saved(
    folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    before = artifact(folder, name="model")
    raw = records()
    frame = options.pop("frame", lambda same: same)(raw)
    if "code" in options:
        (tmp_path / "code.py").write_text(options["code"])
        options = {"code": tmp_path / "code.py"}
    with pytest.raises(UsageError, match=said):
        runner.model.save(folder, trained(raw), frame, target="left", **options)
    assert artifact(folder, name="model") == before
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


# The signature


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
columns = st.builds(
    Column,
    name=texts,
    kind=st.sampled_from(["number", "integer", "boolean", "category"]),
    categories=st.none() | st.lists(texts, max_size=3),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
signatures = st.builds(
    Signature,
    columns=st.lists(columns, max_size=3),
    features=st.none() | st.lists(columns, max_size=2),
    code_sha256=st.none() | texts,
    target=texts,
    positive=st.none() | texts,
    threshold=st.none() | numbers,
    objective=texts,
    key=st.none() | texts,
    split=st.none()
    | st.builds(SplitRule, seed=st.integers(0, 2**31), key=texts, shares=st.dictionaries(texts, numbers, max_size=3)),
    sample_request=st.dictionaries(texts, st.none() | numbers | texts | st.booleans(), max_size=3),
    sample_prediction=numbers | st.lists(numbers, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(signatures)
def test_a_signature_survives_its_json(signature: Signature) -> None:
    assert decode(Signature, encode(signature), where="memory") == signature
    assert encode(decode(Signature, encode(signature), where="memory")) == encode(signature)


def test_the_signature_says_what_a_record_is(model: runner.model.Model) -> None:
    assert msgspec.to_builtins(model.signature.columns) == [
        {"name": "minutes", "kind": "number", "categories": None},
        {"name": "calls", "kind": "integer", "categories": None},
        {"name": "plan", "kind": "category", "categories": ["basic", "gold", "südost"]},
        {"name": "roaming", "kind": "boolean", "categories": None},
    ]
    said = model.signature
    assert (said.target, said.positive, said.threshold, said.key) == ("left", "yes", 0.4, "phone")
    assert said.objective == "binary:logistic"
    assert said.split == SplitRule(**SPLIT)


# Sides


def test_a_saved_and_loaded_model_knows_the_side_each_customer_was_on(model: runner.model.Model) -> None:
    keys = [f"555-{number:04}" for number in range(500)]
    sides = runner.model.split(keys, seed=7, shares=SPLIT["shares"])
    assert model.split_side(keys) == sides
    assert model.split_side(reversed(keys)) == sides[::-1]
    assert {side: sides.count(side) / 500 for side in set(sides)} == pytest.approx(SPLIT["shares"], abs=0.06)


def test_a_model_without_a_split_says_that_it_knows_none(with_code: Path) -> None:
    assert runner.model.load(with_code).split_side(["1"]) is None


def test_a_side_stays_when_the_table_grows_and_does_not_depend_on_the_order_of_shares() -> None:
    keys = [f"c{number}" for number in range(300)]
    shares = {"train": 0.7, "test": 0.3}
    sides = runner.model.split(keys, seed=1, shares=shares)
    assert runner.model.split([*keys, "more", *keys], seed=1, shares=shares) == [*sides, *runner.model.split(["more"], seed=1, shares=shares), *sides]  # fmt: skip
    assert runner.model.split(keys, seed=1, shares=dict(reversed(shares.items()))) == sides
    assert runner.model.split(keys, seed=2, shares=shares) != sides


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.2, "b": -0.2}, {"a": 1.0, "b": 0.0}])
def test_shares_that_do_not_add_up_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        runner.model.split(["a"], seed=1, shares=shares)
