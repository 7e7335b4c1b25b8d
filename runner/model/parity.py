"""The estimator against the folder that is being saved: every row of its frame, through every reader of records.

What is read alike is scored alike, so a reader's numbers are compared with the frame's, and the frame's scores with the
estimator's. In blocks, so that memory is bounded. Of a frame with more rows than a block all are scored; as requests
come those of the first block, and each later row with a value or a gap that its column had not had before: a number's
text is its own, `float(repr(x)) == x`, so a reader can be wrong about what a column holds, not about how often.
"""

from __future__ import annotations

import contextlib
import csv
import io
import warnings
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import UsageError, counted
from runner.model import table
from runner.model.kinds import Tolerance

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.model.kinds import Judged
    from runner.scoring.inference import Rows, Scorer

ALONE = 20  # rows that are sent one by one too
JSON, CSV = "application/json", "text/csv; header="
SHOWN = 6  # values of a row in a message


def check(scorer: Scorer, frame: pd.DataFrame, judged: Judged, features: pd.DataFrame) -> tuple[dict[str, Any], Any]:
    """The frame's first record, and its score as plain numbers.

    `features` are what the estimator takes of the frame, row by row. Raises UsageError naming the first row that the
    folder would score otherwise, or not at all.
    """
    import numpy as np

    alone = set(np.linspace(0, len(frame) - 1, ALONE).astype(int).tolist())
    seen_values: list[set[Any]] = [set() for _ in scorer.columns]
    for start in range(0, len(frame), table.BLOCK):
        rows = range(start, min(start + table.BLOCK, len(frame)))
        block = _Block(scorer, frame.iloc[rows.start : rows.stop], rows)
        block.compare(judged.scores(features.iloc[rows.start : rows.stop]), judged)
        if scorer.computes is not None:
            block.compare_older_pandas()
        fresh = block.fresh(seen_values)
        if fresh or not start:
            block.compare_requests(fresh if start else list(range(len(rows))))
        for row in sorted(alone.intersection(rows)):
            block.compare_alone(row - start, judged)
        if not start:
            sample = block.named(0), block.scores[0].tolist()
    return sample


class _Block:
    """Some rows of the frame, which are its `rows`."""

    def __init__(self, scorer: Scorer, frame: pd.DataFrame, rows: range) -> None:
        self.scorer, self.rows = scorer, rows
        with _refusing("The frame", rows):
            self.values = table.columns(frame, scorer)
            self.read = table.numbers(scorer, self.values)
            self.scores = scorer.score(self.read if scorer.computes is None else table.rows(self.values))

    def records(self, places: Sequence[int]) -> list[tuple[Any, ...]]:
        some = ([values[at] for at in places] if isinstance(values, list) else values[places] for values in self.values)
        return table.rows(some)

    def named(self, at: int) -> dict[str, Any]:
        return dict(zip(self.scorer.names, self.records([at])[0], strict=True))

    def fresh(self, seen: list[set[Any]]) -> list[int]:
        """The rows with a value that is new to what was seen of its column, a missing one among them; adds it there."""
        import numpy as np

        places: set[int] = set()
        for values, known in zip(self.values, seen, strict=True):
            if isinstance(values, list) or values.dtype == bool:
                first = dict(zip(values[::-1], range(len(values))[::-1], strict=True))
            else:
                gaps = np.flatnonzero(np.isnan(values))
                first = {None: int(gaps[0])} if len(gaps) else {}
                places |= {int(np.argmin(values)), int(np.argmax(values))}
            places.update(first[value] for value in first.keys() - known)
            known.update(first)
        return sorted(places)

    def compare(self, expected: np.ndarray, judged: Judged) -> None:
        import numpy as np

        if expected.shape != self.scores.shape:
            shapes = f"of shape {expected.shape}, and the saved folder {self.scores.shape}"
            raise UsageError(f"The estimator gives scores {shapes}, so the model was not saved. {judged.advice}")
        close = expected == self.scores
        if judged.tolerance is not None:
            near = judged.tolerance
            close = np.isclose(self.scores, expected, rtol=near.relative, atol=near.absolute)
        finite, same = (one.reshape(len(expected), -1).all(axis=1) for one in (np.isfinite(expected), close))
        if not finite.all():
            at = int(finite.argmin())
            raise self._refusal(at, f"scores {_shown(expected[at])}", "No answer can have that.")
        if not same.all():
            at = int(same.argmin())
            what = f"scores {_shown(expected[at])} by the estimator and {_shown(self.scores[at])} by the saved folder"
            more = "" if judged.tolerance is None else f", which is more apart than {judged.tolerance}"
            raise self._refusal(at, f"{what}{more}", judged.advice)

    def compare_older_pandas(self) -> None:
        """SageMaker's serving image has pandas 2.2, where text is Python's objects; pandas 3 still can have it so."""
        import pandas as pd

        if not pd.__version__.startswith("3."):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the option ends with pandas 3
            with pd.option_context("future.infer_string", False), _refusing("With pandas 2.2, the frame", self.rows):
                scores = self.scorer.score(table.rows(self.values))
        same = (scores == self.scores).reshape(len(scores), -1).all(axis=1)
        if not same.all():
            at = int(same.argmin())
            what = f"scores {_shown(self.scores[at])} here and {_shown(scores[at])} with pandas 2.2"
            advice = (
                "An endpoint has pandas 2.2, where text is of dtype object: write features.py so that it gives the "
                "same in both."
            )
            raise self._refusal(at, what, advice)

    def compare_requests(self, places: list[int]) -> None:
        """Send these rows in every form to every reader; what serves reads common forms by other code."""
        from runner.scoring.fast_reading import quick

        names, served = self.scorer.names, quick(self.scorer)
        records = self.records(places)
        by_name = msgspec.json.encode([dict(zip(names, record, strict=True)) for record in records])
        arrays, plain = msgspec.json.encode({"instances": records}), _csv(records)
        read = self.scorer.columns.read(records)
        self._compare(places, "Python's values", records, read)
        requests = [
            ("JSON by name", by_name, JSON, None),
            ("JSON by name", by_name, JSON, served),
            ("JSON arrays", arrays, JSON, None),
            ("JSON arrays", arrays, JSON, served),
            ("CSV", _csv([names]) + plain, f"{CSV}present", None),
        ]
        if served(plain, f"{CSV}absent") is not None:  # else it is read as with a header
            requests.append(("CSV without a header", plain, f"{CSV}absent", served))
        for name, body, kind, reader in requests:
            self.scorer.quick = reader or (lambda *_: None)
            with _refusing(name, [self.rows[at] for at in places]):
                rows = self.scorer.table(body, kind)
                same = isinstance(rows, list) and list(map(tuple, rows)) == records
                numbers = read if same else [rows] if isinstance(rows, array) else self.scorer.columns.read(rows)
            self._compare(places, name, rows, numbers)

    def _compare(self, places: list[int], name: str, rows: Rows, numbers: Any) -> None:
        import numpy as np

        if len(numbers) != len(places):
            raise UsageError(
                f"{name} has {len(numbers)} of the frame's {counted(len(places), 'row')}, so it was not saved."
            )
        code = self.scorer.code
        read, expected = np.asarray(numbers, dtype=code), self.read[places].astype(code)
        wrong = ~((read == expected) | (np.isnan(read) & np.isnan(expected)))
        for column in (at for at, column in enumerate(self.scorer.columns) if column.kind == "text"):
            texts = [self.values[column][at] or None for at in places]
            wrong[:, column] = [(row[column] or None) != text for row, text in zip(rows, texts, strict=True)]
        if not wrong.any():
            return
        row, column = (int(number) for number in np.argwhere(wrong)[0])
        score = self.scorer.score(np.asarray(numbers)[[row]] if self.scorer.computes is None else [rows[row]])[0]
        value = self.records([places[row]])[0][column]
        difference = (
            f"is read otherwise from {name}, where {self.scorer.names[column]} is {_short(rows[row][column])} and not "
            f"{_short(value)}: it scores {_shown(self.scores[places[row]])}, and from there {_shown(score)}"
        )
        alike = "CSV writes a missing value and the category '' alike. " if value in (None, "") else ""
        raise self._refusal(
            places[row], difference, f"{alike}Rename the category, in the frame that the model learns from."
        )

    def compare_alone(self, at: int, judged: Judged) -> None:
        import numpy as np

        from runner.scoring.fast_reading import quick

        self.scorer.quick = quick(self.scorer)
        body = msgspec.json.encode([self.named(at)])
        with _refusing("JSON by name", [self.rows[at]]):
            score = self.scorer.score(self.scorer.table(body, JSON))[0]
        near = judged.tolerance or Tolerance(0, 0)
        if not np.allclose(score, self.scores[at], rtol=near.relative, atol=near.absolute):
            difference = f"scores {_shown(self.scores[at])} among the others and {_shown(score)} alone"
            raise self._refusal(
                at,
                difference,
                "A record's features must follow from that record: keep means and the like as constants.",
            )

    def _refusal(self, at: int, what: str, do: str) -> UsageError:
        values = [f"{name}={_short(value)}" for name, value in self.named(at).items()]
        more = f", and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
        row = f"{', '.join(values[:SHOWN])}{more}"
        return UsageError(f"Row {self.rows[at] + 1} of the frame {what}, so the model was not saved ({row}). {do}")


@contextlib.contextmanager
def _refusing(what: str, rows: Sequence[int]) -> Iterator[None]:
    """BadInput about these rows of the frame as a sentence."""
    from runner.scoring.inference import BadInput

    try:
        yield
    except ValueError as error:
        reason = str(error)
        if isinstance(error, BadInput) and error.row is not None and error.row <= len(rows):
            reason = table.message(error, rows[error.row - 1] + 1 - error.row)
        raise UsageError(f"{what} could not be read as records, so the model was not saved. {reason}") from error


def _csv(rows: list[Any]) -> bytes:
    """With the line ends by which the writer knows what to quote."""
    for end in ("\n", "\r\n"):
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator=end).writerows(rows)
        if "\r" not in file.getvalue():
            break
    return file.getvalue().encode()


def _short(value: object) -> str:
    text = repr(value)  # which escapes what a terminal would act on
    return text if len(text) <= 40 else f"{text[:39]}…"


def _shown(scores: np.ndarray) -> str:
    numbers = [f"{score:.9g}" for score in scores.ravel()[:4].tolist()]
    return numbers[0] if scores.ndim == 0 else f"[{', '.join(numbers)}{', …' if scores.size > 4 else ''}]"
