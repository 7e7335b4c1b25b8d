"""Which numbers a notebook measures: names that hold what a metric's function gives, and that it prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from runner.adopt.names import Names, is_free
from runner.adopt.source import CodeCell, Source

HIGHER = {
    "accuracy_score", "balanced_accuracy_score", "roc_auc_score", "average_precision_score", "f1_score", "fbeta_score",
    "precision_score", "recall_score", "jaccard_score", "matthews_corrcoef", "cohen_kappa_score", "r2_score",
    "explained_variance_score", "d2_absolute_error_score", "ndcg_score", "top_k_accuracy_score", "silhouette_score",
    "adjusted_rand_score", "normalized_mutual_info_score", "score",
}  # fmt: skip
LOWER = {
    "log_loss", "brier_score_loss", "hinge_loss", "hamming_loss", "zero_one_loss", "mean_squared_error",
    "root_mean_squared_error", "mean_absolute_error", "median_absolute_error", "mean_absolute_percentage_error",
    "mean_squared_log_error", "root_mean_squared_log_error", "max_error", "mean_pinball_loss", "davies_bouldin_score",
}  # fmt: skip
AROUND = {
    "round",
    "float",
    "abs",
    "sqrt",
    "item",
    "mean",
    "log",
}  # what a metric may be wrapped in, whose order it keeps
SHOWS = {"print", "display", "info", "pprint"}
EMPTY: Mapping[str, tuple[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Measured:
    """A name with a metric's last value. `better` is "" where the code does not tell."""

    name: str
    function: str
    better: str


@dataclass(frozen=True)
class Unnamed:
    """A metric that is shown and has no name."""

    cell: CodeCell
    expression: str


def metrics_of(source: Source, names: Names) -> Iterator[Measured | Unnamed]:
    """The metrics, in the order of the code: those with a name that is printed, and those that are printed at once."""
    shown = {node.id for _, expression in _shown(source) for node in ast.walk(expression) if isinstance(node, ast.Name)}
    found: dict[str, Measured] = {}
    known: dict[str, tuple[str, str]] = {}
    for _, statement in source.top_level():
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name) as target], value=value)
                | ast.AnnAssign(target=ast.Name(id=name) as target, value=ast.expr() as value)
            ):
                function, better = known[name] = _metric(value, known)
                if function and name in shown and is_free(name) and names.last_bound.get(name) is target:
                    found[name] = Measured(name, function, better)
    yield from found.values()
    for cell, expression in _shown(source):
        inner = expression.args if _shows(expression) and isinstance(expression, ast.Call) else [expression]
        yield from (Unnamed(cell, ast.unparse(part)) for part in inner if _metric(part)[0])


def _shown(source: Source) -> Iterator[tuple[CodeCell, ast.expr]]:
    """The calls that print, and each cell's last expression."""
    for cell in source.cells:
        last = cell.tree.body[-1] if cell.tree.body else None
        if isinstance(last, ast.Expr) and not _shows(last.value) and not _is_silent(cell):
            yield cell, last.value
        yield from ((cell, node) for node in ast.walk(cell.tree) if isinstance(node, ast.Call) and _shows(node))


def _shows(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _called(node) in SHOWS


def _is_silent(cell: CodeCell) -> bool:
    return cell.cell.source.rstrip().endswith(";")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _metric(node: ast.expr, known: Mapping[str, tuple[str, str]] = EMPTY) -> tuple[str, str]:
    """(the metric's function, which way is better) of an expression that gives one; ("", "") for any other.

    `known` are those of the names that were assigned before.
    """
    match node:
        case ast.Name(id=name):
            return known.get(name, ("", ""))
        case ast.BinOp(left=ast.expr() as left, op=ast.Mult() | ast.Div(), right=ast.Constant(value=int() | float())):
            return _metric(left, known)
        case ast.BinOp(left=ast.expr() as left, op=ast.Pow(), right=ast.Constant(value=0.5)):
            return _metric(left, known)
        case ast.BinOp(left=ast.Constant(), op=ast.Mult(), right=right):
            return _metric(right, known)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _metric(operand, known)[0], ""
        case ast.Call():
            return _metric_call(node, known)
    return "", ""


def _metric_call(node: ast.Call, known: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    name = _called(node)
    averages = {keyword.arg: keyword.value for keyword in node.keywords}
    for option in ("average", "multioutput"):  # which give an array
        value = averages.get(option)
        if isinstance(value, ast.Constant) and value.value in (None, "raw_values"):
            return "", ""
    if name in HIGHER and (name != "score" or (isinstance(node.func, ast.Attribute) and node.args)):
        return name, "higher"
    if name in LOWER:
        return name, "lower"
    if name not in AROUND:
        return "", ""
    inner = node.args[0] if node.args else getattr(node.func, "value", None)
    if isinstance(inner, ast.Call) and _called(inner) == "cross_val_score" and name == "mean":
        return "cross_val_score", ""
    return _metric(inner, known) if isinstance(inner, ast.expr) else ("", "")
