"""Model folders of format 1, written when a category's text was stripped and its code found by name.

They are scored by the same code as any other if their categories are those of their trees, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from runner.errors import Refused
from runner.model.estimator import PROBABLE, cut, learned
from runner.model.signature import Signature

SIGNATURE, MODELS = "signature.json", ("model.ubj", "model.json")


def check_earlier(files: Mapping[str, bytes], folder: Path) -> None:
    """Raises Refused for a folder of format 1 whose scores differ from its estimator's."""
    try:
        signature = msgspec.json.decode(files.get(SIGNATURE, b""), type=Signature)
    except msgspec.MsgspecError:  # none, or not ours: whoever reads it says so
        return
    if signature.format != 1:
        return
    again = "An earlier version of runner saved it. Train again, or save the estimator again, and register that."
    if signature.positive is not None and signature.objective not in PROBABLE:
        raise Refused(f"{folder} calls what {signature.objective} gives a probability, and it is not one. {again}")
    columns = signature.columns if signature.features is None else signature.features
    if not any(column.kind == "category" for column in columns):
        return
    import xgboost as xgb

    booster = xgb.Booster()
    try:
        booster.load_model(bytearray(next(files[name] for name in MODELS if name in files)))
    except xgb.core.XGBoostError:  # whoever loads it says so
        return
    for column, names in zip(columns, learned(booster), strict=False):
        texts = column.categories or []
        if names is not None and not any(
            names[: len(texts)] == encoded for encoded in ([text.encode() for text in texts], cut(texts))
        ):
            raise Refused(
                f"{folder}: the categories of {column.name} are not those of its trees, in their order. {again}"
            )
