"""Whether a text is trees of LightGBM that its library can walk: it believes the numbers of a file, and would read and
write past its memory by wrong ones. Whoever wrote the file may be anybody.

https://github.com/microsoft/LightGBM/blob/master/src/io/tree.cpp
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

LARGEST_BYTES = 500 * 2**20
MOST_FEATURES, MOST_CLASSES = 1_000_000, 10_000
BEGIN, END = b"tree\n", "end of trees"
WHOLE = re.compile(r"-?\d{1,9}", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf", re.ASCII)
CATEGORICAL = 1  # the bit of a decision's type
SEVERAL = ("multiclass", "multiclassova")


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
    header = _fields(head.decode())
    features = _count(header, "max_feature_idx", MOST_FEATURES) + 1
    classes, each = (_count(header, name, MOST_CLASSES) for name in ("num_class", "num_tree_per_iteration"))
    for name in ("feature_names", "feature_infos"):
        if len(header.get(name, "").split(" ")) != features:
            raise Wrong(f"has other {name} than its {features} features")
    _check_objective(header.get("objective", ""), classes, each)
    sizes = [int(text) for text in _texts(header, "tree_sizes", WHOLE)]
    blocks = [b"Tree=" + block + b"\n" * (at < len(rest) - 1) for at, block in enumerate(rest)]
    if [len(block) for block in blocks] != sizes or len(blocks) % each:
        raise Wrong("has other trees than its tree_sizes say")
    for at, block in enumerate(blocks):
        try:
            _check_tree(_fields(block.decode()), features)
        except Wrong as error:
            raise Wrong(f"is wrong in tree {at}, where {error}") from None


def _check_objective(objective: str, classes: int, each: int) -> None:
    """The objective writes as many numbers as it says there are classes."""
    name, *options = objective.split(" ") if objective else [""]
    said = [option for option in options if option.startswith("num_class:")]
    if classes != each or classes < 1 or (name in SEVERAL) != (classes > 1) or (name in SEVERAL) != (len(said) == 1):
        raise Wrong(f"has {classes} classes, {each} trees for a round and the objective {objective[:80]!r}")
    if said and said[0] != f"num_class:{classes}":
        raise Wrong(f"has {classes} classes and the objective {objective[:80]!r}")


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
    thresholds = _numbers(tree, "threshold", inner)
    for name, count in (("split_gain", inner), ("internal_value", inner), ("internal_weight", inner),
                        ("internal_count", inner), ("leaf_weight", leaves), ("leaf_count", leaves)):  # fmt: skip
        if name in tree:
            _numbers(tree, name, count)
    _check_children(_whole(tree, "left_child", inner), _whole(tree, "right_child", inner), leaves)
    sets = [threshold for threshold, kind in zip(thresholds, types, strict=True) if kind & CATEGORICAL]
    count = _count(tree, "num_cat", 10_000_000)
    if not all(one.is_integer() and 0 <= one < count for one in sets):
        raise Wrong("a split is by a set of categories that there is not")
    if count:
        bounds = _whole(tree, "cat_boundaries", count + 1)
        words = len(_texts(tree, "cat_threshold", re.compile(r"\d{1,10}", re.ASCII)))
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
    coefficients = _texts(tree, "leaf_coeff", NUMBER)
    if min(counts) < 0 or not sum(counts) == len(columns) == len(coefficients):
        raise Wrong("a leaf has other coefficients than it says")
    if not all(0 <= one < features for one in columns):
        raise Wrong("a leaf is of a column that there is not")


def _fields(text: str) -> dict[str, str]:
    """name=value of each line. Raises Wrong where a name is there twice."""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, separator, value = line.partition("=")
        if separator and name in fields:
            raise Wrong(f"{name[:40]!r} is there twice")
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
    return [int(one) for one in _sized(_texts(fields, name, WHOLE), name, count)]


def _numbers(fields: Mapping[str, str], name: str, count: int) -> list[float]:
    numbers = [float(one) for one in _sized(_texts(fields, name, NUMBER), name, count)]
    if name == "leaf_value" and not all(map(math.isfinite, numbers)):
        raise Wrong("a leaf's value is no finite number")
    return numbers


def _sized(texts: list[str], name: str, count: int) -> list[str]:
    if len(texts) != count:
        raise Wrong(f"{name} has {len(texts)} numbers, and should have {count}")
    return texts
