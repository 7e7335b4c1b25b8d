"""A model as a folder that scores raw records: what scores, the signature, and the code of its features.

model.ubj        XGBoost's own format; or model.txt, LightGBM's; or model.onnx, of scikit-learn. Never a pickle
signature.json   what a raw record looks like, and a sample with its prediction
features.py      only where features are computed: `transform(frame) -> frame`, frozen and hashed
contributions.json    only where they were given: how much each column moves the score
reference.json        only where rows were given: what the columns hold, and the scores, for monitoring
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import Refused, Tampered, UsageError, counted
from runner.model import parity, table
from runner.model.files import CODE, MODEL, SIGNATURE, check_files, read_files, sha256_of, signature_of
from runner.model.kinds import judged as judged_model
from runner.model.profile import REFERENCE, Profile, score_columns
from runner.model.profile import describe as profile_of
from runner.model.signature import BadRecords, Label, Signature, SplitRule, Unknown, describe
from runner.model.split import split
from runner.records import decode, encode

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.scoring.inference import Scorer

CONTRIBUTIONS = "contributions.json"
BLOCK = 100_000  # rows that are read at a time
FORMAT = 2  # of a signature with trees of XGBoost, which earlier programs read too


def save(  # noqa: PLR0913 - what a notebook says of its model, each by its name
    folder: str | Path,
    estimator: Any,
    frame: pd.DataFrame,
    *,
    target: str,
    positive: Label | None = None,
    labels: Sequence[Label] | None = None,
    threshold: float | None = None,
    missing: float | None = None,
    key: str | None = None,
    split: dict[str, Any] | None = None,
    code: str | Path | ModuleType | None = None,
    contributions: Mapping[str, float] | None = None,
    reference: pd.DataFrame | None = None,
) -> None:
    """Write the model folder; an older one at that place is replaced whole.

    `estimator` is a booster or a fitted estimator of XGBoost or LightGBM, whose best round and missing value are kept,
    or a fitted estimator or pipeline of scikit-learn. `frame` has the raw records it was trained on, shape (n_rows,
    n_columns), category columns as pandas categories: its columns are the signature's, its first row the sample.
    `positive` names what a probability is of, `labels` several classes by their numbers; where the estimator has names
    of its own they are taken from it. `missing` is what XGBoost's DMatrix was given with a booster. `split` is {"seed",
    "key", "shares"}, see `runner.model.split`. `code` is a module (or its file) whose `transform` makes the estimator's
    features from such records. `contributions` has the mean absolute SHAP value of each of the estimator's columns, for
    whoever reviews the model. `reference` are raw records that it did not learn from: what the columns of both tables
    hold, and how these are scored, is kept as counts for whoever watches the model later. Equal arguments give equal
    bytes. Raises UsageError where the folder would not score every row of the frame as the estimator does, in whatever
    form it is sent: to the bit, with scikit-learn within `runner.model.kinds.ROUNDING`; and for what cannot be saved
    without a pickle.
    """
    if not len(frame):
        raise UsageError("The frame has no rows, so the model cannot be saved with a sample record.")
    columns = describe(frame, open_text=code is not None)
    judged = judged_model(estimator, missing, positive, labels)
    rule = _split_rule(split) if split else None
    with _replacing(Path(folder)) as beside:
        features, code_sha256 = (frame, None) if code is None else _frozen(code, frame, beside / CODE)
        taken = columns if code is None else describe(features)
        texts = [one.name for one in taken if one.kind == "category" and features[one.name].dtype != "category"]
        if texts and judged.categorical:
            features = features.astype(dict.fromkeys(texts, "category"))
        converted = judged.convert(features, taken)
        taken = converted.columns
        (beside / judged.file).write_bytes(converted.content)
        if contributions is not None:
            (beside / CONTRIBUTIONS).write_bytes(_contributed(contributions, {column.name for column in taken}))
        signature = Signature(
            format=FORMAT if judged.file == MODEL else Signature.newest,
            columns=taken if code is None else columns,
            features=None if code is None else taken,
            code_sha256=code_sha256,
            target=target,
            positive=judged.names.positive,
            labels=judged.names.labels,
            threshold=threshold,
            objective=judged.objective,
            missing=judged.missing,
            key=key,
            split=rule,
            required=converted.required or msgspec.UNSET,
            sample_request={},
            sample_prediction=0.0,
        )
        scorer = _scorer({**read_files(beside), SIGNATURE: _encoded(signature)}, beside)
        record, score = parity.check(scorer, frame, judged, features)
        signature = msgspec.structs.replace(signature, sample_request=record, sample_prediction=score)
        (beside / SIGNATURE).write_bytes(_encoded(signature))
        if reference is not None:
            (beside / REFERENCE).write_bytes(_referred(frame, reference, load(beside)))


def load(folder: str | Path, *, sha256: str | None = None) -> Model:
    """The model in the folder, from bytes that are read once and checked: what is hashed is what is loaded.

    Raises Tampered where the folder's hash is not `sha256`, or its code is not what it was trained with; Refused for a
    pickle; UsageError where there is no model.
    """
    folder = Path(folder)
    files = read_files(folder)
    if SIGNATURE not in files:
        raise UsageError(f"{folder} is not a model folder: it has no {SIGNATURE}. Write it with runner.model.save.")
    if sha256 is not None and sha256_of(files) != sha256:
        raise Tampered(f"{folder} was altered: its bytes do not have the recorded hash {sha256[:12]}.")
    check_files(files, folder)
    return Model(signature_of(files, folder), files, folder)


class Model:
    """A loaded model. `signature` says what its records look like."""

    def __init__(self, signature: Signature, files: Mapping[str, bytes], folder: Path) -> None:
        """`files` is the folder's content, with a model of either format."""
        self.signature, self._files, self._folder = signature, files, folder
        self._scorers: dict[Unknown, Scorer] = {"error": _scorer(files, folder)}

    @property
    def reference(self) -> Profile | None:
        """What the rows looked like that it was made with; None where the folder does not have it."""
        content = self._files.get(REFERENCE)
        return None if content is None else decode(Profile, content, where=self._folder / REFERENCE)

    def predict(self, frame: pd.DataFrame, unknown: Unknown = "error") -> np.ndarray:
        """Probability of the positive label, or the predicted number: shape (n_rows,); (n_rows, n_classes) for several.

        Takes raw records in any column order; further columns are ignored. A missing value is the estimator's missing.
        Raises BadRecords naming row and column.
        """
        import numpy as np

        from runner.scoring.inference import BadInput

        if unknown not in self._scorers:
            self._scorers[unknown] = _scorer(self._files, self._folder, unknown)
        scorer, start = self._scorers[unknown], 0
        scores = [np.empty((0, *np.shape(self.signature.sample_prediction)), dtype="float32")]
        try:
            table.columns(frame.iloc[:0], scorer)
            for start in range(0, len(frame), BLOCK):
                values = table.columns(frame.iloc[start : start + BLOCK], scorer)
                scores.append(
                    scorer.score(table.numbers(scorer, values) if scorer.computes is None else table.rows(values))
                )
        except BadInput as error:
            raise BadRecords(table.message(error, start)) from error
        return np.concatenate(scores)

    def unknown_categories(self, frame: pd.DataFrame) -> dict[str, int]:
        """Rows per category column with a value the model has never seen; columns without any are left out."""
        columns = [
            one for one in self._scorers["error"].columns if one.kind == "category" and one.name in frame.columns
        ]
        counts = {column.name: table.unknown(column, frame[column.name]) for column in columns}
        return {name: count for name, count in counts.items() if count}

    def split_side(self, keys: Iterable[object]) -> list[str] | None:
        """The side each key was on when this model was trained; None where its split is not known."""
        rule = self.signature.split
        return None if rule is None else split(keys, seed=rule.seed, shares=rule.shares)


def _referred(frame: pd.DataFrame, held_out: pd.DataFrame, model: Model) -> bytes:
    """reference.json: the columns of all rows, and the scores of those that the model did not learn from."""
    signature = model.signature
    scores = score_columns(model.predict(held_out, unknown="missing"), signature.labels)
    return encode(profile_of([frame, held_out], signature.columns, scores, missing=signature.missing))


def _module(source: bytes, path: Path) -> ModuleType:
    """The module with this source; `path` is where it comes from. Nothing is written beside it."""
    module = ModuleType(f"_features_{hashlib.sha256(source).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(source, str(path), "exec"), module.__dict__)
    if not callable(getattr(module, "transform", None)):
        raise UsageError(f"{path} has no function transform(frame) -> frame.")
    return module


def _frozen(code: str | Path | ModuleType, frame: pd.DataFrame, place: Path) -> tuple[pd.DataFrame, str]:
    """The features that the code makes of the frame, and the hash of what is kept of it at the place.

    Raises UsageError where it makes no table of as many rows.
    """
    import pandas as pd

    source = Path(str(code.__file__) if isinstance(code, ModuleType) else code)
    content = source.read_bytes()
    place.write_bytes(content)
    module = _module(content, source)
    try:
        features = module.transform(frame.copy())
    except Exception as error:  # whatever its author lets it raise
        raise UsageError(f"{source}: transform makes no features of the frame: {error!r}.") from error
    if not isinstance(features, pd.DataFrame) or len(features) != len(frame):
        result = counted(len(features), "row") if isinstance(features, pd.DataFrame) else f"a {type(features).__name__}"
        raise UsageError(f"{source}: transform must give a table of {counted(len(frame), 'row')}, and gave {result}.")
    return features, hashlib.sha256(content).hexdigest()


def _scorer(files: Mapping[str, bytes], folder: Path, unknown: Unknown = "error") -> Scorer:
    from runner.scoring.inference import Scorer

    try:
        return Scorer(dict(files), unknown=unknown, threads=0)
    except ValueError as error:
        raise Refused(f"{folder} has no model that can be loaded: {error}") from error


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside it that takes its place once all in it is written, or is removed where something raises."""
    beside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    beside.mkdir(parents=True)
    try:
        yield beside
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


def _contributed(contributions: Mapping[str, float], columns: Collection[str]) -> bytes:
    """The largest first."""
    wrong = [name for name, value in contributions.items() if name not in columns or not 0 <= float(value) < math.inf]
    if wrong:
        raise UsageError(
            f"contributions: {', '.join(map(repr, wrong))} must be a column of the model, with a number of 0 or more."
        )
    ranked = sorted(
        ((name, float(value)) for name, value in contributions.items()), key=lambda item: (-item[1], item[0])
    )
    return json.dumps(dict(ranked), indent=1, ensure_ascii=False).encode() + b"\n"


def _encoded(signature: Signature) -> bytes:
    """As `runner.records.encode`, but the sample's columns stay in the model's order.

    Raises UsageError where it could not be read again.
    """
    try:
        content = msgspec.json.format(msgspec.json.encode(signature, enc_hook=_plain), indent=1) + b"\n"
        msgspec.json.decode(content, type=Signature)
    except (TypeError, msgspec.MsgspecError) as error:
        reason, _, where = str(error).partition(" - at `$.")
        raise UsageError(f"{where.rstrip('`') or 'The model'} cannot be saved as it was given: {reason}.") from error
    if not 0 <= (signature.threshold or 0) <= 1:
        raise UsageError(f"threshold={signature.threshold} is not a probability, 0 to 1.")
    return content


def _plain(value: Any) -> Any:
    """numpy's number as Python's, for msgspec."""
    return value.item() if hasattr(value, "item") else value


def _split_rule(settings: Mapping[str, Any]) -> SplitRule:
    try:
        rule = SplitRule(seed=settings["seed"], key=settings["key"], shares=dict(sorted(settings["shares"].items())))
        split((), seed=rule.seed, shares=rule.shares)
    except KeyError as error:
        raise UsageError(f"split has no {error}; it needs seed, key and shares.") from error
    except ValueError as error:
        raise UsageError(f"split: {error}") from error
    return rule
