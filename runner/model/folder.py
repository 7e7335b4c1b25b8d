"""A model as a folder that scores raw records: the trees, the signature, and the code of its features.

model.ubj        XGBoost's own format; never a pickle
signature.json   what a raw record looks like, and a sample with its prediction
features.py      only where features are computed: `transform(frame) -> frame`, frozen and hashed
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from runner.content import artifact
from runner.errors import Refused, Tampered, UsageError
from runner.model.approval import check_format
from runner.model.signature import (
    Signature,
    SplitRule,
    Unknown,
    describe,
    plain_record,
    read_frame,
    unknown_categories,
)
from runner.model.split import split
from runner.records import decode, encode

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xgboost as xgb

MODEL, SIGNATURE, CODE = "model.ubj", "signature.json", "features.py"


def save(
    folder: str | Path,
    booster: xgb.Booster,
    frame: pd.DataFrame,
    *,
    target: str,
    positive: str | None = None,
    threshold: float | None = None,
    key: str | None = None,
    split: dict[str, Any] | None = None,
    code: str | Path | ModuleType | None = None,
) -> None:
    """Write the model folder; an older one at that place is replaced whole.

    `frame` has the raw records it was trained on, shape (n_rows, n_columns), category columns as pandas categories:
    its columns are the signature's, its first row the sample. `split` is {"seed", "key", "shares"}, see
    `runner.model.split`. `code` is a module (or its file) whose `transform` makes the booster's features from such
    records. Equal arguments give equal bytes. Raises UsageError where the saved folder would not score its own sample.
    """
    folder = Path(folder)
    columns = describe(frame)
    rule = SplitRule(seed=split["seed"], key=split["key"], shares=split["shares"]) if split else None
    beside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    beside.mkdir(parents=True)
    try:
        source = Path(str(code.__file__) if isinstance(code, ModuleType) else code) if code is not None else None
        features, code_sha256 = None, None
        if source is not None:
            shutil.copyfile(source, beside / CODE)
            code_sha256 = hashlib.sha256((beside / CODE).read_bytes()).hexdigest()
            features = describe(_module(beside / CODE).transform(read_frame(frame, columns, unknown="error")))
        booster.save_model(beside / MODEL)
        signature = Signature(
            columns=columns,
            features=features,
            code_sha256=code_sha256,
            target=target,
            positive=positive,
            threshold=threshold,
            objective=_objective(booster),
            key=key,
            split=rule,
            sample_request=plain_record(frame, columns),
            sample_prediction=0.0,
        )
        # the sample's prediction is what the saved folder says, not what the booster in memory says
        scored = Model(signature, (beside / MODEL).read_bytes(), beside).predict(frame.iloc[:1])[0]
        signature = _with_sample(signature, scored)
        (beside / SIGNATURE).write_bytes(encode(signature))
        for file in beside.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        old = folder.with_name(f".{folder.name}-old-{secrets.token_hex(4)}")
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load(folder: str | Path, *, sha256: str | None = None) -> Model:
    """The model in the folder, from bytes that are read once and checked.

    Raises Tampered where the folder's hash is not `sha256`, or its code is not what it was trained with; Refused for a
    pickle; UsageError where there is no model.
    """
    folder = Path(folder)
    if not (folder / SIGNATURE).is_file():
        raise UsageError(f"{folder} is no model folder: it has no {SIGNATURE}. Write it with runner.model.save.")
    check_format(folder)
    if sha256 is not None and artifact(folder, name=folder.name).sha256 != sha256:
        raise Tampered(f"{folder} was altered: its bytes do not have the recorded hash {sha256[:12]}.")
    signature = decode(Signature, (folder / SIGNATURE).read_bytes(), where=folder / SIGNATURE)
    return Model(signature, (folder / MODEL).read_bytes(), folder)


class Model:
    """A loaded model. `signature` says what its records look like."""

    def __init__(self, signature: Signature, trees: bytes, folder: Path) -> None:
        import xgboost as xgb

        self.signature = signature
        self._transform = None
        if signature.code_sha256 is not None:
            code = folder / CODE
            if hashlib.sha256(code.read_bytes()).hexdigest() != signature.code_sha256:
                raise Tampered(f"{code} is not the code this model was trained with.")
            self._transform = _module(code).transform
        self._booster = xgb.Booster()
        try:
            self._booster.load_model(bytearray(trees))
        except xgb.core.XGBoostError as error:
            raise Refused(f"{folder / MODEL} is no XGBoost model: {str(error).splitlines()[0]}") from error

    def predict(self, frame: pd.DataFrame, unknown: Unknown = "error") -> np.ndarray:
        """Probability of the positive label, or the predicted number: shape (n_rows,); (n_rows, n_classes) for several.

        Takes raw records in any column order; further columns are ignored. A missing value is XGBoost's missing. Raises
        BadRecords naming row and column.
        """
        import xgboost as xgb

        made = read_frame(frame, self.signature.columns, unknown=unknown)
        if self._transform is not None and self.signature.features is not None:
            made = read_frame(self._transform(made), self.signature.features, unknown=unknown)
        scores: np.ndarray = self._booster.predict(xgb.DMatrix(made, enable_categorical=True))
        return scores

    def unknown_categories(self, frame: pd.DataFrame) -> dict[str, int]:
        """Rows per category column with a value the model has never seen."""
        return unknown_categories(frame, self.signature.columns)

    def split_side(self, keys: Iterable[object]) -> list[str] | None:
        """The side each key was on when this model was trained; None where its split is not known."""
        rule = self.signature.split
        return None if rule is None else split(keys, seed=rule.seed, shares=rule.shares)


def _module(path: Path) -> ModuleType:
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location(f"_features_{secrets.token_hex(4)}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python module.")
    module = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the folder is hashed; nothing may appear in it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    if not callable(getattr(module, "transform", None)):
        raise UsageError(f"{path} has no function transform(frame) -> frame.")
    return module


def _objective(booster: xgb.Booster) -> str:
    import json

    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _with_sample(signature: Signature, scored: Any) -> Signature:
    import msgspec

    value = [float(part) for part in scored] if getattr(scored, "ndim", 0) else float(scored)
    return msgspec.structs.replace(signature, sample_prediction=value)
