"""scikit-learn's histogram gradient boosting as ONNX, with thresholds of float64, which skl2onnx rounds to float32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runner.model.onnx_converters import DOUBLE, Converter, Nodes, ordinal

LEAF = "LEAF"
LINKS = {"HalfBinomialLoss": "Sigmoid", "HalfMultinomialLoss": "Softmax", "HalfSquaredError": "", "AbsoluteError": "",
         "PinballLoss": "", "HalfPoissonLoss": "Exp", "HalfGammaLoss": "Exp"}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """Of a tree; what goes to `yes` has a value that is at most `value`, or equal to it, or with `gap` none."""

    number: int
    tree: int
    target: int
    mode: str = LEAF
    feature: int = 0
    value: float = 0.0
    yes: int = 0
    no: int = 0
    gap: int = 0
    weight: float = 0.0


def converters(real: Any) -> dict[type, Converter]:
    """As `runner.model.onnx_converters.converters`."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    one = Converter(functools.partial(_converted, real), functools.partial(_shape, real))
    return {HistGradientBoostingClassifier: one, HistGradientBoostingRegressor: one}


def _shape(real: Any, operator: Any) -> None:
    from skl2onnx.common.data_types import Int64TensorType

    model, rows = operator.raw_operator, operator.inputs[0].get_first_dimension()
    if hasattr(model, "classes_"):
        operator.outputs[0].type = Int64TensorType([rows])
    operator.outputs[-1].type = real([rows, len(getattr(model, "classes_", [0]))])


def _converted(real: Any, scope: Any, operator: Any, container: Any) -> None:
    model, nodes = operator.raw_operator, Nodes(scope, container, real)
    link = LINKS.get(type(model._loss).__name__)
    if link is None:
        raise ValueError(f"the loss {type(model._loss).__name__} of histogram boosting has no graph here")
    columns = nodes.columns(operator.inputs)
    if model._preprocessor is not None:  # categories first, as numbers, and then the rest
        places = [np.flatnonzero(model.is_categorical_), np.flatnonzero(~model.is_categorical_)]
        encoder = model._preprocessor.named_transformers_["encoder"]
        coded = ordinal(nodes, encoder, [columns[at] for at in places[0]])
        columns = [*((one, False) for one in coded), *(columns[at] for at in places[1])]
    features = nodes.cast(nodes.concat([name for name, _ in columns]), to=DOUBLE)
    raw = nodes.add("TreeEnsembleRegressor", features, domain="ai.onnx.ml", op_version=3, **_attributes(model))
    raw = nodes.add("Add", nodes.cast(raw), nodes.constant(np.asarray(model._baseline_prediction, dtype="float64")))
    scores = nodes.add(link, raw, axis=1) if link == "Softmax" else nodes.add(link, raw) if link else raw
    if link == "Sigmoid":
        scores = nodes.concat([nodes.add("Sub", nodes.constant([[1.0]]), scores), scores])
    nodes.named(operator.outputs[-1].full_name, scores)
    if hasattr(model, "classes_"):  # nobody asks for it; the graph needs it
        label = nodes.add("ArgMax", scores, axis=1, keepdims=0)
        nodes.named(operator.outputs[0].full_name, label)


def _attributes(model: Any) -> dict[str, Any]:
    """Of all trees, as the operator has them: https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html"""
    from onnx import numpy_helper

    stages = model._predictors
    trees = [(target, predictor) for stage in stages for target, predictor in enumerate(stage)]
    nodes = [node for tree, (target, predictor) in enumerate(trees) for node in _nodes(predictor, tree, target)]
    leaves = [node for node in nodes if node.mode == LEAF]
    return {
        "n_targets": len(stages[0]),
        "nodes_nodeids": [node.number for node in nodes],
        "nodes_treeids": [node.tree for node in nodes],
        "nodes_featureids": [node.feature for node in nodes],
        "nodes_modes": [node.mode for node in nodes],
        "nodes_truenodeids": [node.yes for node in nodes],
        "nodes_falsenodeids": [node.no for node in nodes],
        "nodes_missing_value_tracks_true": [node.gap for node in nodes],
        "nodes_values_as_tensor": numpy_helper.from_array(np.array([node.value for node in nodes]), "thresholds"),
        "target_ids": [leaf.target for leaf in leaves],
        "target_nodeids": [leaf.number for leaf in leaves],
        "target_treeids": [leaf.tree for leaf in leaves],
        "target_weights_as_tensor": numpy_helper.from_array(np.array([leaf.weight for leaf in leaves]), "weights"),
    }


def _nodes(predictor: Any, tree: int, target: int) -> Iterator[Node]:
    """A tree's. A split by categories is a chain of questions, one for each that goes to the left."""
    next_number = len(predictor.nodes)
    for number, row in enumerate(predictor.nodes):
        node = Node(number, tree, target)
        if row["is_leaf"]:
            yield replace(node, weight=float(row["value"]))
            continue
        right = int(row["right"])
        node = replace(
            node, feature=int(row["feature_idx"]), yes=int(row["left"]), no=right, gap=int(row["missing_go_to_left"])
        )
        if not row["is_categorical"]:
            yield replace(node, mode="BRANCH_LEQ", value=float(row["num_threshold"]))
            continue
        bits = predictor.raw_left_cat_bitsets[row["bitset_idx"]]
        lefts = [code for code in range(256) if int(bits[code // 32]) >> (code % 32) & 1] or [-1]
        for code in lefts[:-1]:
            yield replace(node, mode="BRANCH_EQ", value=float(code), no=next_number)
            node, next_number = replace(node, number=next_number), next_number + 1
        yield replace(node, mode="BRANCH_EQ", value=float(lefts[-1]))
