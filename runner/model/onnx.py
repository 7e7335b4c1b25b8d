"""A fitted estimator of scikit-learn as an ONNX graph that takes a record's own columns: one input for each.

The graph computes in float64, as scikit-learn does, and in float32 what scikit-learn has in float32: its forests. Text
is text in it, a missing one `runner.scoring.runtimes.MISSING`. What skl2onnx would convert to float32 has its own
converters here: encoders, the imputer and histogram boosting (`runner.model.onnx_trees`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import UsageError
from runner.model.signature import Column

if TYPE_CHECKING:
    import pandas as pd

OPSETS = {"": 19, "ai.onnx.ml": 3}  # 19: texts can be compared
NO_EXTRA = "A model of scikit-learn is saved as ONNX, for which {} is missing: pip install onnx onnxruntime skl2onnx."
# estimators that make float32 of their features before they compare them with a tree's thresholds
FORESTS = ("BaseForest", "BaseDecisionTree", "BaseGradientBoosting")


def graphs(model: Any, features: pd.DataFrame, columns: Sequence[Column], place: int | None) -> Iterator[bytes]:
    """The graphs that may score as the estimator does, the likeliest first. `place` is of the class whose probability
    is the score; None for a number, and for all of several classes.

    Raises UsageError where none can be made: for the first one's reason.
    """
    try:
        import skl2onnx
    except ImportError as error:
        raise UsageError(NO_EXTRA.format(error.name)) from error
    kinds = {one.__name__ for one in type(last(model)).__mro__}
    first, second = (True, False) if kinds.intersection(FORESTS) else (False, True)
    reasons: list[Exception] = []
    for double, cast in ((True, first), (True, second), (False, False)):
        real = skl2onnx.common.data_types.DoubleTensorType if double else skl2onnx.common.data_types.FloatTensorType
        try:
            graph = _graph(_casting(model) if cast else model, features, columns, place, real)
        except Exception as error:  # skl2onnx raises whatever its converters do
            reasons.append(error)
            continue
        yield graph
    if len(reasons) == 3:
        said = " ".join(str(reasons[0]).split()).partition(" You may raise")[0].rstrip(".")[:300]
        remedy = " Put the function into a module: save(…, code=…)." * ("FunctionTransformer" in said)
        raise UsageError(f"skl2onnx makes no ONNX graph of the {type(model).__name__}: {said}.{remedy}") from reasons[0]


def _graph(model: Any, features: pd.DataFrame, columns: Sequence[Column], place: int | None, real: Any) -> bytes:
    """One graph; every number in it is of the type `real`."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.base import is_classifier

    from runner.model import onnx_converters, onnx_trees

    inputs = []
    for column in columns:
        texts = column.kind == "category" and not _numeric(features[column.name])
        inputs.append((column.name, (StringTensorType if texts else real)([None, 1])))
    converters = {**onnx_converters.converters(real), **onnx_trees.converters(real)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of skl2onnx's own, on numpy and on names
        converted = convert_sklearn(
            _by_columns(model, features),
            name="model",
            initial_types=inputs,
            options={id(last(model)): {"zipmap": False}} if is_classifier(last(model)) else None,
            target_opset=OPSETS,
            custom_conversion_functions={kind: one.convert for kind, one in converters.items()},
            custom_shape_calculators={kind: one.shape for kind, one in converters.items()},
        )
    _tell_gaps(converted.graph, last(model))
    return _with_one_output(_with_names(converted, [column.name for column in columns]), place)


def _tell_gaps(graph: Any, model: Any) -> None:
    """Say for each split of a forest whether a missing value goes to the left, which skl2onnx leaves out."""
    from onnx import helper

    trees = [getattr(one, "tree_", None) for one in np.ravel(getattr(model, "estimators_", [model]))]
    ensembles = [node for node in graph.node if node.op_type.startswith("TreeEnsemble")]
    if len(ensembles) != 1 or not all(hasattr(tree, "missing_go_to_left") for tree in trees):
        return
    kept = [one for one in ensembles[0].attribute if one.name != "nodes_missing_value_tracks_true"]
    numbers = {one.name: one.ints for one in kept}
    at = zip(numbers["nodes_treeids"], numbers["nodes_nodeids"], strict=True)
    gaps = [int(trees[tree].missing_go_to_left[node]) for tree, node in at]
    del ensembles[0].attribute[:]
    ensembles[0].attribute.extend([*kept, helper.make_attribute("nodes_missing_value_tracks_true", gaps)])


def _with_names(converted: Any, names: Sequence[str]) -> Any:
    """The graph whose inputs are called as the columns are; skl2onnx calls them by letters and digits alone.

    A name with other characters can be no other tensor's.
    """
    graph = converted.graph
    renamed = {one.name: name for one, name in zip(graph.input, names, strict=True)}
    for one in graph.input:
        one.name = renamed[one.name]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return converted


def _with_one_output(converted: Any, place: int | None) -> bytes:
    """The model's bytes, with its probabilities or its number as the only output, and without the class."""
    from onnx import TensorProto, helper, numpy_helper

    graph = converted.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    score, chosen, at = (_unused(name, taken) for name in ("score", "chosen_score", "place_of_score"))
    source = graph.output[-1].name
    if place is not None:
        graph.initializer.append(numpy_helper.from_array(np.array([place]), at))
        graph.node.append(helper.make_node("Gather", [source, at], [chosen], axis=1))
        source = chosen
    graph.node.append(helper.make_node("Cast", [source], [score], to=TensorProto.FLOAT))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(score, TensorProto.FLOAT, [None, None]))
    return bytes(converted.SerializeToString(deterministic=True))


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def last(model: Any) -> Any:
    """The estimator that a pipeline ends in."""
    return last(model.steps[-1][1]) if hasattr(model, "steps") else model


def _by_columns(model: Any, features: pd.DataFrame) -> Any:
    """The estimator, where it begins with what takes all columns as one matrix behind what puts them together."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    first = model
    while hasattr(first, "steps"):
        first = first.steps[0][1]
    takes_columns = {"ColumnTransformer", "FeatureUnion", "OneHotEncoder", "OrdinalEncoder", "SimpleImputer"}
    if type(first).__name__ in takes_columns or "BaseHistGradientBoosting" in {
        one.__name__ for one in type(first).__mro__
    }:
        return model
    together = ColumnTransformer([("columns", "passthrough", list(features.columns))])
    steps = list(model.steps) if isinstance(model, Pipeline) else [("model", model)]
    return Pipeline([("together", together.fit(features.head(2))), *steps])


def _casting(model: Any) -> Any:
    """The estimator, with what makes float32 of the features before its last step."""
    from skl2onnx.sklapi import CastTransformer
    from sklearn.pipeline import Pipeline

    steps = list(model.steps) if isinstance(model, Pipeline) else [("model", model)]
    cast = CastTransformer(dtype=np.float32)
    return Pipeline([*steps[:-1], ("float32", cast), steps[-1]])


def _numeric(series: pd.Series) -> bool:
    """Whether a column of categories has numbers as such."""
    import pandas as pd

    return isinstance(series.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(series.cat.categories.dtype)
