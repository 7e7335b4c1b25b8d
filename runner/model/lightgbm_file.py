"""Whether a text is trees of LightGBM that its library can walk: it believes the numbers of a file, and would read and
write past its memory by wrong ones. Whoever wrote the file may be anybody.

https://github.com/microsoft/LightGBM/blob/master/src/io/tree.cpp
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence, Set

LARGEST_BYTES = 500 * 2**20
MOST_FEATURES, MOST_CLASSES = 1_000_000, 10_000
BEGIN, END = b"tree\n", "end of trees"
WHOLE = re.compile(r"-?\d{1,10}", re.ASCII)
NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?(e[+-]\d{1,3})?", re.ASCII)
INFINITE = ("inf", "-inf")  # a threshold may be
ZERO = re.compile(r"-?0{1,40}(\.0{1,40})?", re.ASCII)
SMALLEST = 2.2250738585072014e-308  # below it a number is read with a fault, which ends the process
HEADER = {
    "tree", "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective",
    "average_output", "feature_names", "feature_infos", "monotone_constraints", "tree_sizes", "",
}  # fmt: skip
TREE = {
    "Tree", "num_leaves", "num_cat", "split_feature", "split_gain", "threshold", "decision_type", "left_child",
    "right_child", "leaf_value", "leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count",
    "cat_boundaries", "cat_threshold", "is_linear", "leaf_const", "num_features", "leaf_features", "leaf_coeff",
    "shrinkage",
}  # fmt: skip
CATEGORICAL = 1  # the bit of a decision's type
SEVERAL = ("multiclass", "multiclassova")
CLASSES, SIGMOID = {"num_class": (1.0, MOST_CLASSES + 1.0)}, {"sigmoid": (0.0, math.inf)}
PLAIN = (
    "", "custom", "regression_l1", "huber", "fair", "poisson", "mape", "gamma", "cross_entropy", "cross_entropy_lambda",
    "lambdarank", "rank_xendcg",
)  # fmt: skip
# with their options, and between what their numbers are; equal ends: none
OBJECTIVES: dict[str, dict[str, tuple[float, float]]] = {
    **{name: {} for name in PLAIN},
    "regression": {"sqrt": (0.0, 0.0)},
    "quantile": {"alpha": (0.0, 1.0)},
    "tweedie": {"tweedie_variance_power": (0.99, 2.0)},
    "binary": SIGMOID,
    "multiclass": CLASSES,
    "multiclassova": {**CLASSES, **SIGMOID},
}


class Wrong(ValueError):
    """What is wrong with the text, as the end of a sentence."""


def fault(content: bytes, most_bytes: int = LARGEST_BYTES) -> str:
    """What is wrong with it, as the end of a sentence; "" where nothing is."""
    if len(content) > most_bytes:
        return f"has {len(content):,} bytes, more than the {most_bytes:,} that are read"
    if not content.startswith(BEGIN) or b"\0" in content:
        return "is no model of LightGBM"
    try:
        _check(content)
    except Wrong as error:
        return str(error)
    except UnicodeDecodeError:
        return "is not UTF-8"
    return ""


def _check(content: bytes) -> None:
    """Raises Wrong."""
    head, *rest = content.split(b"\nTree=")
    end = rest[-1] if rest else head
    trees_end = end.find(f"\n{END}".encode())
    if trees_end < 0:
        raise Wrong("has no end of trees")
    if rest:
        rest[-1] = end[: trees_end + 1]
    header = _fields(head.decode().split("\n"), HEADER)
    features = _count(header, "max_feature_idx", MOST_FEATURES) + 1
    classes, each = (_count(header, name, MOST_CLASSES) for name in ("num_class", "num_tree_per_iteration"))
    for name in ("feature_names", "feature_infos"):
        if len(header.get(name, "").split(" ")) != features:
            raise Wrong(f"has other {name} than its {features} features")
    _check_objective(header.get("objective", ""), classes, each)
    _whole(header, "label_index", 1)
    if "monotone_constraints" in header:
        _whole(header, "monotone_constraints", features)
    sizes = [int(text) for text in _texts(header, "tree_sizes", WHOLE)]
    blocks = [b"Tree=" + block + b"\n" * (at < len(rest) - 1) for at, block in enumerate(rest)]
    if [len(block) for block in blocks] != sizes or len(blocks) % each:
        raise Wrong("has other trees than its tree_sizes say")
    for at, block in enumerate(blocks):
        try:
            fields, separator, more = block.decode().partition("\n\n")
            if more.strip("\n") or not separator:
                raise Wrong("something stands behind its end")
            tree = _fields(fields.split("\n"), TREE)
            if tree["Tree"] != str(at):
                raise Wrong("it has another number")
            _check_tree(tree, features)
        except Wrong as error:
            raise Wrong(f"is wrong in tree {at}, where {error}") from None


def _check_objective(objective: str, classes: int, each: int) -> None:
    """The library ends the process where it takes an option not, and writes as many numbers as there are classes."""
    name, *options = objective.split(" ") if objective else [""]
    values = dict(option.partition(":")[::2] for option in options)
    allowed = OBJECTIVES.get(name, {})
    if name not in OBJECTIVES or len(values) < len(options) or not values.keys() <= allowed.keys():
        raise Wrong(f"has the objective {objective[:80]!r}, which is none of LightGBM's")
    for option, text in values.items():
        low, high = allowed[option]
        if not (text == "" if low == high else NUMBER.fullmatch(text) and low < float(text) < high):
            raise Wrong(f"has the objective {objective[:80]!r}, where {option} is not between {low:g} and {high:g}")
    said = {float(text) for option, text in values.items() if option == "num_class"}
    if classes != each or (name in SEVERAL) != (classes > 1) or said != ({classes} if name in SEVERAL else set()):
        raise Wrong(f"has {classes} classes, {each} trees for a round and the objective {objective[:80]!r}")


def _check_tree(tree: Mapping[str, str], features: int) -> None:
    leaves = _count(tree, "num_leaves", 10_000_000)
    _numbers(tree, "leaf_value", max(leaves, 1))
    _numbers(tree, "shrinkage", 1)
    if "is_linear" in tree and _count(tree, "is_linear", 1):
        _check_linear(tree, leaves, features)
    if leaves <= 1:
        return
    inner = leaves - 1
    splits, types = (_whole(tree, name, inner) for name in ("split_feature", "decision_type"))
    if not all(0 <= one < features for one in splits):
        raise Wrong("a split is by a column that there is not")
    if not all(0 <= one < 16 for one in types):
        raise Wrong("a decision is of a type that there is not")
    thresholds = _numbers(tree, "threshold", inner, infinite=True)
    for name, count in (("split_gain", inner), ("internal_value", inner), ("internal_weight", inner)):
        _numbers(tree, name, count)
    _numbers(tree, "leaf_weight", leaves)
    for name, count in (("internal_count", inner), ("leaf_count", leaves)):
        _whole(tree, name, count)
    _check_children(_whole(tree, "left_child", inner), _whole(tree, "right_child", inner), leaves)
    sets = [threshold for threshold, kind in zip(thresholds, types, strict=True) if kind & CATEGORICAL]
    count = _count(tree, "num_cat", 10_000_000)
    if not all(one.is_integer() and 0 <= one < count for one in sets):
        raise Wrong("a split is by a set of categories that there is not")
    if count:
        bounds = _whole(tree, "cat_boundaries", count + 1)
        words = len(texts := _texts(tree, "cat_threshold", WHOLE))
        if not all(0 <= int(text) < 2**32 for text in texts):
            raise Wrong("a set of categories is not of 32 bits")
        if bounds[0] != 0 or bounds[-1] != words or any(b < a for a, b in itertools.pairwise(bounds)):
            raise Wrong("the sets of categories are not where they are said to be")


def _check_children(lefts: Sequence[int], rights: Sequence[int], leaves: int) -> None:
    """Every node but the root and every leaf, which is ~ its number, has one parent, before it."""
    seen = set[int]()
    for parent, children in enumerate(zip(lefts, rights, strict=True)):
        for child in children:
            if child in seen or not (parent < child < leaves - 1 if child >= 0 else ~child < leaves):
                raise Wrong("the nodes are no tree")
            seen.add(child)


def _check_linear(tree: Mapping[str, str], leaves: int, features: int) -> None:
    _numbers(tree, "leaf_const", leaves)
    counts = _whole(tree, "num_features", leaves)
    columns = [int(one) for one in _texts(tree, "leaf_features", WHOLE)]
    if min(counts) < 0 or sum(counts) != len(columns):
        raise Wrong("a leaf has other coefficients than it says")
    if not all(0 <= one < features for one in columns):
        raise Wrong("a leaf is of a column that there is not")
    _numbers(tree, "leaf_coeff", len(columns))


def _fields(lines: Sequence[str], known: Set[str]) -> dict[str, str]:
    """name=value of each line. Raises Wrong for another name, and where one is there twice."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition("=")
        if name not in known or (name and name in fields) or ("=" in value and name != "feature_names"):
            raise Wrong(f"{name[:40]!r} is there twice or unknown")
        fields[name] = value.rstrip(" ")
    return fields


def _count(fields: Mapping[str, str], name: str, most: int) -> int:
    text = fields.get(name, "")
    if not WHOLE.fullmatch(text) or not 0 <= int(text) <= most:
        raise Wrong(f"{name} is {text[:40]!r}, and not a number from 0 to {most:,}")
    return int(text)


def _texts(fields: Mapping[str, str], name: str, form: re.Pattern[str]) -> list[str]:
    texts = fields.get(name, "").split()
    if not all(map(form.fullmatch, texts)):
        raise Wrong(f"{name} has something else than numbers")
    return texts


def _whole(fields: Mapping[str, str], name: str, count: int) -> list[int]:
    numbers = [int(one) for one in _sized(_texts(fields, name, WHOLE), name, count)]
    if not all(-(2**31) <= one < 2**31 for one in numbers):
        raise Wrong(f"{name} has a number of more than 32 bits")
    return numbers


def _numbers(fields: Mapping[str, str], name: str, count: int, *, infinite: bool = False) -> list[float]:
    texts = fields.get(name, "").split()
    for text in texts:
        fine = ZERO.fullmatch(text) or (NUMBER.fullmatch(text) and SMALLEST <= abs(float(text)) < math.inf)
        if not fine and not (infinite and text in INFINITE):
            raise Wrong(f"{name} has something else than numbers that can be read")
    return [float(text) for text in _sized(texts, name, count)]


def _sized(texts: list[str], name: str, count: int) -> list[str]:
    if len(texts) != count:
        raise Wrong(f"{name} has {len(texts)} numbers, and should have {count}")
    return texts
