"""Encoders and the imputer of scikit-learn in plain nodes of ONNX, for texts and float64: skl2onnx's own know float32.

A category that is None or NaN is a missing value: `runner.scoring.runtimes.MISSING` among texts, NaN among numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.scoring.runtimes import MISSING

FLOAT, STRING, BOOL, DOUBLE = 1, 8, 9, 11  # TensorProto's


@dataclass(frozen=True)
class Converter:
    """Functions that skl2onnx calls with an operator of the topology."""

    convert: Callable[[Any, Any, Any], None]
    shape: Callable[[Any], None]


class Nodes:
    """Adds nodes to a graph, and gives the names of their outputs."""

    def __init__(self, scope: Any, container: Any, real: Any) -> None:
        self.scope, self.container = scope, container
        self.dtype = np.float64 if real.__name__.startswith("Double") else np.float32
        self.real = DOUBLE if self.dtype == np.float64 else FLOAT

    def add(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output: str = self.scope.get_unique_variable_name(kind.lower())
        self.container.add_node(kind, list(inputs), [output], op_domain=domain, name=output, **attributes)
        return output

    def named(self, output: str, source: str) -> None:
        """`source` under the name that the operator's output has."""
        self.container.add_node("Identity", [source], [output], name=self.scope.get_unique_operator_name("Identity"))

    def constant(self, values: Any) -> str:
        """A tensor: of text, of truth values, of int64, or of the graph's numbers."""
        from onnx import numpy_helper

        array = np.asarray(values)
        if array.dtype.kind in "OUS":
            kind, content = STRING, [text.encode() for text in array.ravel().tolist()]
        elif array.dtype.kind == "f":
            kind, content = self.real, array.astype(self.dtype).ravel().tolist()
        else:
            kind, content = int(numpy_helper.from_array(array).data_type), array.ravel().tolist()
        name: str = self.scope.get_unique_variable_name("constant")
        self.container.add_initializer(name, kind, list(array.shape), content)
        return name

    def cast(self, source: str, to: int | None = None) -> str:
        return self.add("Cast", source, to=self.real if to is None else to)

    def concat(self, names: Sequence[str]) -> str:
        return names[0] if len(names) == 1 else self.add("Concat", *names, axis=1)

    def columns(self, variables: Sequence[Any]) -> list[tuple[str, bool]]:
        """Each column of the operator's inputs, shape (n_rows, 1), and whether it is text."""
        single = []
        for variable in variables:
            text, width = type(variable.type).__name__ == "StringTensorType", variable.type.shape[1]
            if width == 1:
                single.append((variable.full_name, text))
                continue
            for at in range(int(width)):
                single.append((self.add("Gather", variable.full_name, self.constant(np.array([at])), axis=1), text))
        return [(name if text else self.cast(name), text) for name, text in single]

    def missing(self, column: str, text: bool) -> str:
        return self.add("Equal", column, self.constant([[MISSING]])) if text else self.add("IsNaN", column)

    def known(self, column: str, text: bool, categories: np.ndarray) -> str:
        """Which category a value is, as numbers 0 and 1: shape (n_rows, n_categories)."""
        if text:
            return self.cast(self.add("Equal", column, self.constant(np.array([_texts(categories)], dtype=object))))
        numbers = [float("nan") if _is_missing(one) else float(one) for one in categories]
        parts = [self.add("Equal", column, self.constant([[one for one in numbers if one == one]]))]
        if len(numbers) and numbers[-1] != numbers[-1]:  # scikit-learn has it last
            parts.append(self.add("IsNaN", column))
        return self.concat([self.cast(part) for part in parts])


def converters(real: Any) -> dict[type, Converter]:
    """By the estimator's type; `real` is the type of the graph's numbers."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    functions = {OneHotEncoder: _one_hot, OrdinalEncoder: ordinal, SimpleImputer: _imputed}
    shape = functools.partial(_shape, real)
    return {
        kind: Converter(functools.partial(_converted, function, real), shape) for kind, function in functions.items()
    }


def _shape(real: Any, operator: Any) -> None:
    model, variables = operator.raw_operator, operator.inputs
    texts = type(model).__name__ == "SimpleImputer" and type(variables[0].type).__name__ == "StringTensorType"
    width = len(
        model.get_feature_names_out(None if not hasattr(model, "feature_names_in_") else model.feature_names_in_)
    )
    kind = type(variables[0].type) if texts else real
    operator.outputs[0].type = kind([variables[0].get_first_dimension(), width])


def _converted(function: Callable[..., list[str]], real: Any, scope: Any, operator: Any, container: Any) -> None:
    nodes = Nodes(scope, container, real)
    parts = function(nodes, operator.raw_operator, nodes.columns(operator.inputs))
    nodes.named(operator.outputs[0].full_name, nodes.concat(parts))


def _one_hot(nodes: Nodes, model: Any, columns: Sequence[tuple[str, bool]]) -> list[str]:
    """With a category dropped, and rare ones together, as the encoder has it. What is unknown has zeros."""
    parts = []
    dropped = getattr(model, "_drop_idx_after_grouping", None)
    for at, ((column, text), categories) in enumerate(zip(columns, model.categories_, strict=True)):
        groups = _groups(model, at, len(categories))
        width, known = int(groups.max()) + 1, nodes.known(column, text, categories)
        matrix, rest = np.eye(width)[groups], np.zeros(width)
        if model.handle_unknown in ("infrequent_if_exist", "warn") and width < len(categories):
            rest[-1] = 1
        kept = [one for one in range(width) if dropped is None or dropped[at] != one]
        if not (width == len(kept) == len(categories)):
            product = nodes.add("MatMul", known, nodes.constant((matrix - rest)[:, kept]))
            known = nodes.add("Add", product, nodes.constant(rest[kept][None, :]))
        parts.append(known)
    return parts


def ordinal(nodes: Nodes, model: Any, columns: Sequence[tuple[str, bool]]) -> list[str]:
    """What is missing and was not when it was fitted is unknown."""
    parts = []
    for at, ((column, text), categories) in enumerate(zip(columns, model.categories_, strict=True)):
        codes, rest = _groups(model, at, len(categories)).astype("float64"), model.unknown_value
        if len(categories) and _is_missing(categories[-1]):
            categories, codes, rest = categories[:-1], codes[: len(categories) - 1], model.encoded_missing_value
        rest = float("nan") if rest is None else float(rest)
        known = nodes.known(column, text, categories)
        code = nodes.add("MatMul", known, nodes.constant(codes[:, None]))
        axis = nodes.constant(np.array([1]))
        seen = nodes.cast(nodes.add("ReduceSum", known, axis, keepdims=1), to=BOOL)
        parts.append(nodes.add("Where", seen, code, nodes.constant([[rest]])))
    return parts


def _imputed(nodes: Nodes, model: Any, columns: Sequence[tuple[str, bool]]) -> list[str]:
    parts, gaps = [], []
    for (column, text), statistic in zip(columns, model.statistics_, strict=True):
        if _is_missing(statistic):
            raise ValueError("SimpleImputer has a column without any value, which it drops; leave that column out")
        if _is_missing(model.missing_values):
            gap = nodes.missing(column, text)
        else:
            gap = nodes.add(
                "Equal", column, nodes.constant([[model.missing_values if text else float(model.missing_values)]])
            )
        value = nodes.constant(np.array([[str(statistic)]], dtype=object) if text else [[float(statistic)]])
        parts.append(nodes.add("Where", gap, value, column))
        gaps.append(gap)
    if model.add_indicator:
        parts += [nodes.cast(gaps[at]) for at in model.indicator_.features_]
    return parts


def _groups(model: Any, at: int, count: int) -> np.ndarray:
    """Which output each category has: its own, or that of all rare ones."""
    if getattr(model, "_infrequent_enabled", False) and model._default_to_infrequent_mappings[at] is not None:
        return np.asarray(model._default_to_infrequent_mappings[at])
    return np.arange(count)


def _texts(categories: np.ndarray) -> list[str]:
    return [MISSING if _is_missing(one) else str(one) for one in categories]


def _is_missing(value: Any) -> bool:
    return value is None or value is not value or type(value).__name__ == "NAType" or bool(value != value)
