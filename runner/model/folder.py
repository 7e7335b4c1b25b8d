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
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from runner.content import folder_artifact
from runner.errors import Refused, Tampered, UsageError
from runner.model.approval import MODEL_FILES, check_files, read_files
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
from runner.records import FileFact, checked, decode, encode

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
    records. Equal arguments give equal bytes. Raises UsageError where the saved folder would not score its own sample,
    or `split` is no rule.
    """
    folder = Path(folder)
    columns = describe(frame)
    if not len(frame):
        raise UsageError("The frame has no rows, so the model cannot be saved with a sample record.")
    rule = _split_rule(split) if split else None
    beside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    beside.mkdir(parents=True)
    try:
        source = Path(str(code.__file__) if isinstance(code, ModuleType) else code) if code is not None else None
        features, code_sha256 = None, None
        if source is not None:
            content = source.read_bytes()
            (beside / CODE).write_bytes(content)
            code_sha256 = hashlib.sha256(content).hexdigest()
            features = describe(_features(_module(content, source), read_frame(frame, columns, unknown="error")))
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
        signature = _with_sample(signature, _score(Model(signature, read_files(beside), beside), frame.iloc[:1]))
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
    """The model in the folder, from bytes that are read once and checked: what is hashed is what is loaded.

    Raises Tampered where the folder's hash is not `sha256`, or its code is not what it was trained with; Refused for a
    pickle; UsageError where there is no model.
    """
    folder = Path(folder)
    files = read_files(folder)
    if SIGNATURE not in files:
        raise UsageError(f"{folder} is no model folder: it has no {SIGNATURE}. Write it with runner.model.save.")
    if sha256 is not None and _sha256(files) != sha256:
        raise Tampered(f"{folder} was altered: its bytes do not have the recorded hash {sha256[:12]}.")
    check_files(files, folder)
    place = folder / SIGNATURE
    return Model(checked(decode(Signature, files[SIGNATURE], where=place), where=place), files, folder)


class Model:
    """A loaded model. `signature` says what its records look like."""

    def __init__(self, signature: Signature, files: Mapping[str, bytes], folder: Path) -> None:
        """`files` is the folder's content, with a model of either format."""
        import xgboost as xgb

        self.signature = signature
        self._code: ModuleType | None = None
        if signature.code_sha256 is not None:
            if hashlib.sha256(files.get(CODE, b"")).hexdigest() != signature.code_sha256:
                raise Tampered(f"{folder / CODE} is not the code this model was trained with.")
            self._code = _module(files[CODE], folder / CODE)
        trees = next(name for name in MODEL_FILES if name in files)
        self._booster = xgb.Booster()
        try:
            self._booster.load_model(bytearray(files[trees]))
        except xgb.core.XGBoostError as error:
            raise Refused(f"{folder / trees} is no XGBoost model: {str(error).splitlines()[0]}") from error

    def predict(self, frame: pd.DataFrame, unknown: Unknown = "error") -> np.ndarray:
        """Probability of the positive label, or the predicted number: shape (n_rows,); (n_rows, n_classes) for several.

        Takes raw records in any column order; further columns are ignored. A missing value is XGBoost's missing. Raises
        BadRecords naming row and column.
        """
        import numpy as np
        import xgboost as xgb

        made = read_frame(frame, self.signature.columns, unknown=unknown)
        if self._code is not None and self.signature.features is not None:
            made = read_frame(_features(self._code, made), self.signature.features, unknown=unknown)
        if made.empty:  # XGBoost warns of it
            return np.empty((0, *np.shape(self.signature.sample_prediction)), dtype="float32")
        scores: np.ndarray = self._booster.predict(xgb.DMatrix(made, enable_categorical=True))
        return scores

    def unknown_categories(self, frame: pd.DataFrame) -> dict[str, int]:
        """Rows per category column with a value the model has never seen."""
        return unknown_categories(frame, self.signature.columns)

    def split_side(self, keys: Iterable[object]) -> list[str] | None:
        """The side each key was on when this model was trained; None where its split is not known."""
        rule = self.signature.split
        return None if rule is None else split(keys, seed=rule.seed, shares=rule.shares)


def _module(source: bytes, path: Path) -> ModuleType:
    """The module with this source; `path` is where it comes from. Nothing is written beside it."""
    module = ModuleType(f"_features_{hashlib.sha256(source).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(source, str(path), "exec"), module.__dict__)
    if not callable(getattr(module, "transform", None)):
        raise UsageError(f"{path} has no function transform(frame) -> frame.")
    return module


def _features(code: ModuleType, frame: pd.DataFrame) -> pd.DataFrame:
    """The table that the code makes of the records, row by row. Raises UsageError where it makes something else."""
    import pandas as pd

    made = code.transform(frame)
    if not isinstance(made, pd.DataFrame) or len(made) != len(frame):
        what = f"{len(made)} rows" if isinstance(made, pd.DataFrame) else f"a {type(made).__name__}"
        raise UsageError(f"{code.__file__}: transform must give a table of {len(frame)} rows, and gave {what}.")
    return made


def _score(model: Model, sample: pd.DataFrame) -> Any:
    """The sample's prediction. Raises UsageError where the booster was trained on other columns."""
    import xgboost as xgb

    try:
        return model.predict(sample)[0]
    except (ValueError, xgb.core.XGBoostError) as error:
        raise UsageError(f"The model would not score a record of this frame: {error}") from error


def _split_rule(given: Mapping[str, Any]) -> SplitRule:
    try:
        rule = SplitRule(seed=given["seed"], key=given["key"], shares=given["shares"])
        split((), seed=rule.seed, shares=rule.shares)
    except KeyError as error:
        raise UsageError(f"split has no {error}; it needs seed, key and shares.") from error
    except ValueError as error:
        raise UsageError(f"split: {error}") from error
    return rule


def _sha256(files: Mapping[str, bytes]) -> str:
    facts = {
        name: FileFact(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in files.items()
    }
    return folder_artifact("", facts).sha256


def _objective(booster: xgb.Booster) -> str:
    import json

    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _with_sample(signature: Signature, scored: Any) -> Signature:
    import msgspec

    value = [float(part) for part in scored] if getattr(scored, "ndim", 0) else float(scored)
    return msgspec.structs.replace(signature, sample_prediction=value)
