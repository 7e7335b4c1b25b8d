"""A graph or trees by an enemy: refused by what is read of the file, before anything computes with it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support.kinds import save

import runner.model
from runner.errors import Refused
from runner.model import lightgbm_file, onnx_file
from runner.model.files import check_format

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (save(tmp_path_factory.mktemp("graph") / "model", "sklearn") / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("trees") / "model", "lightgbm")


@pytest.fixture(scope="module")
def trees(folder: Path) -> bytes:
    return (folder / "model.txt").read_bytes()


def elsewhere(tensor: Any) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def in_a_branch(model: Any) -> None:
    """A number in another file, within a graph in a graph."""
    constant = numpy_helper.from_array(np.ones(3, "float32"), "far")
    elsewhere(constant)
    inner = helper.make_graph([helper.make_node("Identity", ["far"], ["x"])], "inner", [], [], [constant])
    model.graph.node.append(helper.make_node("If", ["yes"], ["x"], then_branch=inner, else_branch=inner))


def in_an_attribute(model: Any) -> None:
    constant = numpy_helper.from_array(np.ones(3, "float32"))
    elsewhere(constant)
    model.graph.node.append(helper.make_node("Constant", [], ["far"], value=constant))


def endless(model: Any) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", "yes"], ["x"], body=body))


GRAPHS: dict[str, tuple[Change, str]] = {
    "numbers in another file": (lambda model: elsewhere(model.graph.initializer[0]), "numbers in another file"),
    "in a branch": (in_a_branch, "numbers in another file"),
    "in an attribute": (in_an_attribute, "numbers in another file"),
    "operators of somebody's": (
        lambda model: model.graph.node.append(helper.make_node("Shell", [], ["x"], domain="evil")), "operators of 'evil'",
    ),
    "of onnxruntime's own": (
        lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "operators of 'com.microsoft'",
    ),
    "functions": (
        lambda model: model.functions.append(helper.make_function("", "f", [], ["x"], [], [helper.make_opsetid("", 19)])),
        "functions or training steps",
    ),
    "a loop": (endless, "the operator Loop"),
    "chance": (
        lambda model: model.graph.node.append(helper.make_node("RandomNormal", [], ["x"], shape=[9])), "operator RandomNormal",
    ),
    "no graph": (lambda model: model.ClearField("graph"), "has no graph"),
}  # fmt: skip


def test_what_is_saved_is_taken(graph: bytes, trees: bytes) -> None:
    assert (onnx_file.fault(graph), lightgbm_file.fault(trees)) == ("", "")


@pytest.mark.parametrize("what", GRAPHS)
def test_a_graph_has_nothing_but_a_graph(graph: bytes, what: str) -> None:
    change, said = GRAPHS[what]
    model = onnx.load_model_from_string(graph)
    change(model)
    assert said in onnx_file.fault(model.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a graph", b"\xff" * 50])
def test_what_is_no_graph_is_refused(content: bytes) -> None:
    assert re.search("is no ONNX file|has no graph", onnx_file.fault(content))


def test_a_file_may_not_be_too_large(graph: bytes, trees: bytes) -> None:
    for fault, content in ((onnx_file.fault, graph), (lightgbm_file.fault, trees)):
        assert "more than the 100 that are read" in fault(content, most_bytes=100)


def resized(change: Callable[[bytes], bytes]) -> Change:
    """The trees changed, and what the file says of their sizes with them."""

    def apply(trees: bytes) -> bytes:
        content = change(trees)
        before, after = ([len(one) for one in of.split(b"\nTree=")[1:-1]] for of in (trees, content))
        sizes = re.search(rb"tree_sizes=(.*)", content)
        assert sizes
        numbers = [int(one) for one in sizes[1].split()]
        numbers[: len(before)] = [n + b - a for n, a, b in zip(numbers, before, after, strict=False)]
        return content.replace(sizes[0], b"tree_sizes=" + b" ".join(b"%d" % one for one in numbers))

    return apply


def swapped(pattern: bytes, by: bytes) -> Change:
    return resized(lambda trees: re.sub(pattern, by, trees, count=1))


TREES: dict[str, tuple[Change, str]] = {
    "a column that is not": (swapped(rb"split_feature=\d+", b"split_feature=999999"), "by a column that there is not"),
    "a column before the first": (swapped(rb"split_feature=\d+", b"split_feature=-5"), "by a column that there is not"),
    "a node far away": (swapped(rb"left_child=-?\d+", b"left_child=123456"), "the nodes are no tree"),
    "a leaf far away": (swapped(rb"left_child=-?\d+", b"left_child=-123456"), "the nodes are no tree"),
    "a circle": (swapped(rb"left_child=-?\d+", b"left_child=0"), "the nodes are no tree"),
    "fewer leaves": (swapped(rb"num_leaves=\d+", b"num_leaves=3"), "should have"),
    "leaves without an end": (swapped(rb"num_leaves=\d+", b"num_leaves=99999999999"), "num_leaves is"),
    "a leaf less": (swapped(rb"leaf_value=\S+ ", b"leaf_value="), "leaf_value has"),
    "a leaf that is text": (swapped(rb"leaf_value=\S+", b"leaf_value=x"), "something else than numbers"),
    "a leaf without a value": (swapped(rb"leaf_value=\S+", b"leaf_value=inf"), "something else than numbers"),
    "a number too small to be read": (swapped(rb"leaf_value=\S+", b"leaf_value=1e-320"), "something else than numbers"),
    "a number too large to be read": (swapped(rb"threshold=\S+", b"threshold=1e999"), "something else than numbers"),
    "an option that ends the process": (
        lambda trees: trees.replace(b"binary sigmoid:1", b"binary sigmoid:0"), "sigmoid is not between",
    ),
    "an objective of somebody's": (lambda trees: trees.replace(b"=binary sigmoid:1", b"=evil"), "none of LightGBM's"),
    "a blank line": (resized(lambda trees: trees.replace(b"\nthreshold=", b"\n\nthreshold=", 1)), "behind its end"),
    "a line of its own": (resized(lambda trees: trees.replace(b"\nthreshold=", b"\nx\nthreshold=", 1)), "unknown"),
    "a set of categories far away": (swapped(rb"cat_boundaries=0 \d+", b"cat_boundaries=0 70000"), "sets of categories"),
    "said twice": (swapped(rb"num_cat=(\d+)", rb"num_cat=\1\nnum_cat=\1"), "there twice"),
    "other sizes": (lambda trees: trees.replace(b"tree_sizes=", b"tree_sizes=1"), "other trees than its tree_sizes"),
    "more classes": (lambda trees: trees.replace(b"num_class=1", b"num_class=900"), "900 classes"),
    "an objective of more classes": (
        lambda trees: trees.replace(b"objective=binary sigmoid:1", b"objective=multiclass num_class:900"), "the objective",
    ),
    "other names": (lambda trees: trees.replace(b"feature_names=", b"feature_names=a "), "other feature_names"),
    "more columns": (lambda trees: re.sub(rb"max_feature_idx=\d+", b"max_feature_idx=70", trees), "other feature_names"),
    "no end": (lambda trees: trees.replace(b"end of trees", b""), "no end of trees"),
    "half": (lambda trees: trees[: len(trees) // 2], "no end of trees"),
    "another file": (lambda _: b"tree of life", "is no model of LightGBM"),
}  # fmt: skip


@pytest.mark.parametrize("what", TREES)
def test_trees_by_which_lightgbm_would_leave_its_memory_are_refused(
    folder: Path, trees: bytes, what: str, tmp_path: Path
) -> None:
    change, said = TREES[what]
    content = change(trees)
    assert content != trees
    assert said in lightgbm_file.fault(content)  # type: ignore[arg-type]
    copy = tmp_path / "model"
    copy.mkdir()
    (copy / "signature.json").write_bytes((folder / "signature.json").read_bytes())
    (copy / "model.txt").write_bytes(content)  # type: ignore[arg-type]
    for refuse in (check_format, runner.model.load):
        with pytest.raises(Refused, match=r"model\.txt"):
            refuse(copy)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 0.999), byte=st.integers(32, 126))
def test_a_changed_byte_is_refused_or_leaves_trees_that_can_be_walked(
    trees: bytes, folder: Path, place: float, byte: int
) -> None:
    at = int(place * trees.index(b"end of trees"))
    content = trees[:at] + bytes([byte]) + trees[at + 1 :]
    if lightgbm_file.fault(content):
        return
    from runner.scoring.inference import Scorer

    files = {"signature.json": (folder / "signature.json").read_bytes(), "model.txt": content}
    with contextlib.suppress(ValueError):  # LightGBM's own refusal, or that of a score without an end
        scorer = Scorer(files)
        assert scorer.score(scorer.records(scorer.signature["sample_request"])).shape == (1,)


def test_a_folder_of_two_models_is_refused(folder: Path, graph: bytes, tmp_path: Path) -> None:
    for name, content in (
        ("model.onnx", graph),
        ("model.txt", (folder / "model.txt").read_bytes()),
        ("signature.json", (folder / "signature.json").read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=r"has model\.onnx and model\.txt, and a folder holds one model"):
        check_format(tmp_path)
