"""Scores raw records by a model folder: reads them, asks XGBoost's C library or another runtime, writes the answer.

`runner.model`, `predict`, `serve` and an endpoint's container (as `code/inference.py`) run these lines: there is
one rule by which a record is read. They import nothing of ours, and pandas only for a model's code.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

CSV, JSON, LINES = "text/csv", "application/json", "application/jsonlines"
CONTENT_TYPES = {CSV: CSV, JSON: JSON, LINES: LINES, "application/x-jsonlines": LINES, "application/x-ndjson": LINES}
ACCEPTED = {**CONTENT_TYPES, "*/*": JSON, "application/*": JSON, "text/*": CSV}
LARGEST = float(np.finfo("float32").max)  # that XGBoost holds
CODED = ("category", "boolean", "text")  # kinds of columns whose values are looked up
NUMBER = re.compile(r"[ \t\n\r\f\v]*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?[ \t\n\r\f\v]*", re.ASCII)
WHOLE = re.compile(r"^([+-]?\d+)\.0+$")  # both are linear in a text's length, which `\d+\.?\d*` is not
Open = type("Open", (dict,), {"__missing__": lambda *_: math.nan})  # codes of any text, which the model's code reads
Predict = Callable[[Any, int, int], np.ndarray]  # of numbers, and how many rows and columns they are
Rows = Sequence[Sequence[Any]]  # records, each with the values of the model's columns in its order
TRUTH_VALUES = dict.fromkeys((True, "true", "True", "1"), 1.0) | dict.fromkeys((False, "false", "False", "0"), 0.0)


class BadInput(ValueError):
    """A request that gets no score: what is wrong, in which row (from 1) and column, and the HTTP status for it."""

    def __init__(self, message: str, row: int | None = None, column: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.row, self.column, self.status = row, column, status

    def body(self) -> bytes:
        return json.dumps({"error": str(self), "row": self.row, "column": self.column}).encode()


class ColumnReader:
    """How one column's values become numbers; a category's is its place in the list."""

    def __init__(self, declared: Mapping[str, Any], unknown: str) -> None:
        self.name, self.kind, self.unknown = declared["name"], declared["kind"], unknown
        self.known: list[str] = declared.get("categories") or []
        codes = {text: float(code) for code, text in enumerate(self.known)}
        self._numbers = {category(text): code for text, code in codes.items() if NUMBER.fullmatch(text)}
        self._of_numbers = self._numbers | codes  # for values that are not text
        self.codes: dict[Any, float] = Open() if self.kind == "text" else {"": math.nan, None: math.nan, **codes}
        self.codes |= TRUTH_VALUES if self.kind == "boolean" else {}

    def number(self, value: Any, row: int) -> float:
        """One value by all rules, of which an exact match is the first. Raises BadInput."""
        value = value.item() if isinstance(value, np.generic) else value
        nested = "an object" if isinstance(value, dict) else "a list" * isinstance(value, (list, tuple, np.ndarray))
        number = math.nan
        if not nested:  # which is not made text: it can be deeper than the interpreter's stack
            if isinstance(value, str) and value in self.codes:
                return self.codes[value]
            text = "" if value is None or value != value else value if isinstance(value, str) else category(value)
            if not text.strip() or self.kind == "text":
                return number
            if self.kind == "category":
                number = (self._numbers if text is value else self._of_numbers).get(category(text), number)
                if number == number or self.unknown == "missing":
                    return number
            elif self.kind == "boolean":
                text = {"true": "1", "false": "0"}.get(text.strip().lower(), text)
            number = float(text) if NUMBER.fullmatch(text) and self.kind != "category" else number
        if number in (0, 1) or (self.kind != "boolean" and abs(number) <= LARGEST):
            return number
        known = f"not a known category ({', '.join(self.known[:8])}{', …' if len(self.known) > 8 else ''})"
        problems = {"category": known, "boolean": "neither true nor false", "text": "not text"}
        problem = problems.get(self.kind, f"not a {'finite ' * (number == number or isinstance(value, float))}number")
        raise BadInput(f"Row {row}, column {self.name}: {nested or repr(value)[:99]} is {problem}.", row, self.name)


class ColumnReaders(tuple[ColumnReader, ...]):
    """A table's columns: read all at once in a tenth of the time of one by one, where there is nothing odd."""

    def __init__(self, _: Iterable[ColumnReader]) -> None:
        self._coded = [(at, one.codes) for at, one in enumerate(self) if one.kind in CODED]
        self._numeric = [at for at, one in enumerate(self) if one.kind not in CODED]
        self._pick = _picker(self._numeric)

    def read(self, rows: Rows) -> np.ndarray:
        """The rows as numbers, float64, shape (n_rows, n_columns). Raises BadInput."""
        if isinstance(rows, np.ndarray) and (within(rows) or not (np.abs(rows) > LARGEST).any()):
            return rows  # as runner.scoring.fast_reading and runner.model read them
        matrix = np.empty((len(rows), len(self)))
        flat = list(itertools.chain.from_iterable(map(self._pick, rows) if self._coded else rows))
        kinds = set(map(type, flat))
        blank = "" if kinds == {str} else None
        try:
            if kinds == {str}:
                text = "".join(flat)  # of which Python reads more as numbers
                odd = not text.isascii() or any(mark in text for mark in "_\x1c\x1d\x1e\x1f")
                numbers = np.array([math.inf] if odd else [float(one or "nan") for one in flat])
            else:
                numbers = np.array(flat if kinds <= {float, int, type(None)} else [math.inf], dtype="float64")
            present = len(flat) - (flat.count(blank) if type(blank) in kinds else 0)
            if np.count_nonzero(np.abs(numbers) <= LARGEST) != present:
                raise ValueError
            matrix[:, self._numeric] = numbers.reshape(len(matrix), len(self._numeric))
            for at, codes in self._coded:
                matrix[:, at] = [codes[row[at]] for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError):  # one of them is another form of a value, or wrong
            pairs = zip(self, zip(*rows, strict=True), strict=True)
            matrix = np.array([[one.number(value, n) for n, value in enumerate(values, 1)] for one, values in pairs]).T
        return matrix


class Scorer:
    """A model folder's content, ready to score. Safe for several threads."""

    def __init__(self, files: dict[str, bytes], *, unknown: str = "error", model: str = "", threads: int = 1) -> None:
        signature = self.signature = json.loads(files["signature.json"])
        self.model, self.computes = model, None
        self.quick: Callable[[bytes, str], Any] = lambda *_: None  # reads rows of common forms faster, or gives None
        if signature.get("code_sha256") is not None:
            name = f"_features_{signature['code_sha256'][:12]}"
            self.computes = sys.modules[name] = ModuleType(name)  # where dataclasses look for it
            exec(compile(files["features.py"], "features.py", "exec"), self.computes.__dict__)
        trees = files.get("model.ubj") or files.get("model.json")
        self.texts: Callable[[list[Any]], list[str]] = lambda values: list(map(repr, values))  # as JSON has them
        self.code = "f" if trees else "d"  # the numbers that are scored, as `array` and numpy call them
        if trees:
            self._predict: Predict = Booster(trees, threads, signature.get("missing")).predict
        else:  # by runtimes.py, which stands beside this file, in a container too
            runtimes = importlib.import_module(f"{__package__}.runtimes" if __package__ else "runtimes")
            self._predict = runtimes.Runtime(files, signature, threads, BadInput).predict
        declared = [signature[part] or () for part in ("columns", "features")]
        tables = [ColumnReaders(ColumnReader(one, unknown) for one in columns) for columns in declared]
        self.columns, self._features = tables[0], tables[self.computes is not None]
        self.names: list[str] = [column.name for column in self.columns]
        self._wanted, self._pick = frozenset(self.names), _picker(self.names)
        self._folded = frozenset(map(str.casefold, self.names))
        values = set[Any]().union(*(column.codes for column in self.columns))
        # whether a header could be a record: by names that are numbers, or categories
        self._doubtful = 2 * sum(n in values or bool(NUMBER.fullmatch(n)) for n in self.names) >= len(self.names)
        self.labels, self.several = signature.get("labels"), signature["objective"].startswith("multi:")
        self.probable = signature.get("positive") is not None or signature["objective"] == "binary:logistic"
        self.threshold = 0.5 if signature.get("threshold") is None else signature["threshold"]
        csv.field_size_limit(2**26)  # a column that the model does not use may have long text

    def self_test(self) -> Scorer:
        """Itself, having scored the recorded sample. Raises ValueError for anything but the recorded prediction."""
        score = self.score(self.records(self.signature["sample_request"]))[0]
        expected = self.signature["sample_prediction"]
        if score.shape != np.shape(expected) or not np.allclose(score, expected, rtol=1e-5, atol=1e-6):
            raise ValueError(f"The sample record scores {score.tolist()}; {expected} is recorded.")
        return self

    def table(self, body: bytes, content_type: str) -> Rows:
        """The records of a request, at least one. Raises BadInput."""
        kind, _, options = content_type.lower().partition(";")
        match = CONTENT_TYPES.get(kind.strip())
        if match is None:
            raise BadInput(f"Content-Type {content_type!r} is not one of {', '.join(CONTENT_TYPES)}.", status=415)
        rows: Rows | None = self.quick(body, match + options)
        if rows is not None:
            return rows
        try:
            text = body.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise BadInput(f"The body is not UTF-8, at byte {error.start}.") from None
        if match == CSV:
            rows = self.csv(text, options)
        elif match == JSON:
            rows = self.records(self.read_json(text))
        else:
            lines = enumerate(text.split("\n"), start=1)
            rows = self.records([self.read_json(line, f"Line {at}: ") for at, line in lines if line.strip()])
        if not rows:
            raise BadInput("The body has no record.")
        return rows

    def score(self, rows: Any) -> np.ndarray:
        """Probabilities or predicted numbers: float32, shape (n_rows,) or (n_rows, n_classes). Raises BadInput."""
        if isinstance(rows, array):  # a single one, as runner.scoring.fast_reading reads it
            return self._predict(rows, 1, len(rows))
        numbers = self.columns.read(rows)
        if self.computes is not None:
            numbers = self._features.read(self._computed(numbers, rows))
        matrix = numbers.astype(self.code, order="C")
        return self._predict(matrix, *matrix.shape)

    def answers(self, scores: np.ndarray) -> tuple[list[Any], list[float] | None]:
        """Per row the prediction and its probability; None where the model predicts a number."""
        if self.several:
            classes = scores.argmax(axis=1) if scores.ndim == 2 else scores.astype("int64")
            predictions = [self.labels[at] for at in classes] if self.labels else classes.tolist()
            return predictions, scores.max(axis=1).tolist() if scores.ndim == 2 else None
        values = scores.tolist()
        return ([value >= self.threshold for value in values], values) if self.probable else (values, None)

    def reply(self, scores: np.ndarray, accept: str) -> tuple[bytes, str]:
        """The body and its content type. Raises BadInput where none is accepted."""
        kind = accepted(accept)
        if kind == CSV:
            values = scores.tolist()
            lines = self.texts(values) if scores.ndim == 1 else (",".join(map(repr, row)) for row in values)
            if self.several and scores.ndim == 1:  # a class, which may have a name
                csv.writer(to := io.StringIO(newline=""), lineterminator="\n").writerows(zip(self.answers(scores)[0]))
                return to.getvalue().encode(), f"{CSV}; charset=utf-8"
            return ("\n".join(lines) + "\n").encode(), f"{CSV}; charset=utf-8"
        predictions, chances = self.answers(scores)
        if self.labels:
            words: Iterable[str] = map(json.dumps, predictions)
        elif chances is None or self.several:
            words = self.texts(predictions)
        else:
            words = ("true" if one else "false" for one in predictions)
        if chances is None:
            items = [f'{{"prediction":{word}' for word in words]
        else:
            pairs = zip(words, self.texts(chances), strict=True)
            items = [f'{{"prediction":{word},"probability":{chance}' for word, chance in pairs]
        if kind == LINES:
            return ("}\n".join(items) + "}\n").encode(), LINES
        return f'{{"predictions":[{"},".join(items)}}}],"model":{json.dumps(self.model)}}}'.encode(), JSON

    def csv(self, text: str, header: str = "") -> Rows:
        """The records of CSV text; `header` says "present" or "absent", else that is found out. Raises BadInput."""
        if '"' in text:
            try:
                rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
            except csv.Error as error:
                mark = other_delimiter(text.partition("\n")[0], error)
                problem = f"the fields are separated by {mark!r}. Write commas" if mark else error
                raise BadInput(f"The body is not CSV: {problem}.") from None
        else:
            lines = (text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text).removesuffix("\n")
            rows = [line.split(",") for line in lines.split("\n")] if lines else []
        return self.fields(self.without_blank_lines(rows), header)

    def without_blank_lines(self, rows: list[list[str]]) -> list[list[str]]:
        """Without blank lines, which are no records; but where there is one column each is a missing value."""
        return [row or [""] for row in rows if len(row) > 1 or len(self.names) == 1 or (row and row[0].strip())]

    def fields(self, rows: list[list[str]], header: str) -> Rows:
        """As `csv`, for its fields. Of the columns, the model's are taken."""
        width, picks = len(self.names), None
        names = [name if name in self._wanted else name.strip() for name in rows[0]] if rows else []
        guessed = "absent" not in header and 2 * len(self._folded.intersection(map(str.casefold, names))) >= width
        if guessed and self._doubtful and "present" not in header:
            raise BadInput("The first line may be a header or a record. Say it: text/csv; header=present, or absent.")
        if guessed or "present" in header:
            place, rows = {name: at for at, name in enumerate(names)}, rows[1:]
            self.check_complete(place)  # or it names the other spelling
            if len(place) < len(names) and (twice := [name for name in self.names if names.count(name) > 1]):
                raise BadInput(f"Column {twice[0]} is there twice.", column=twice[0])
            width, picks = len(names), [place[name] for name in self.names]
        if rows and set(map(len, rows)) != {width}:
            row, fields = next((at, fields) for at, fields in enumerate(rows, start=1) if len(fields) != width)
            source, plural = "model" if picks is None else "header", "s" * (len(fields) != 1)
            problem = f"{len(fields)} field{plural} where the {source} has {width}"
            if len(fields) < width and (marks := [mark for mark in ";\t|" if mark in fields[0]]):
                problem = f"the fields are separated by {marks[0]!r}. Write commas"
            raise BadInput(f"Row {row}: {problem}.", row)
        return rows if picks in (None, list(range(width))) else list(map(_picker(picks), rows))

    def check_complete(self, names: Mapping[str, Any], row: int | None = None) -> None:
        if absent := [name for name in self.names if name not in names]:
            others = itertools.islice((name for name in names if name not in self._wanted), 200)
            spellings = {name.casefold().strip()[:99]: name[:99] for name in others}
            close = [name for one in absent[:3] for name in get_close_matches(one.casefold(), spellings, 1)]
            near = dict.fromkeys(repr(spellings[name]) for name in close)
            sentence = f"Missing column{'s' * (len(absent) > 1)}{f' in row {row}' * bool(row)}: {', '.join(absent)}."
            raise BadInput(sentence + f" There is {', '.join(near)}." * bool(near), row, absent[0])

    def read_json(self, text: str, where: str = "") -> Any:
        try:
            return json.loads(text, parse_constant=str)  # NaN becomes text, which no column takes
        except (RecursionError, ValueError) as error:
            raise BadInput(f"{where}The body is not JSON: {error}.") from None

    def records(self, items: Any) -> Rows:
        if isinstance(items, dict):
            items = items["instances"] if "instances" in items and "instances" not in self._wanted else [items]
        if not isinstance(items, list):
            raise BadInput('The body is neither a record, nor a list of records, nor {"instances": [...]} with one.')
        try:
            return list(map(self._pick, items))
        except (KeyError, TypeError, IndexError):
            for row, item in enumerate(items, start=1):
                if isinstance(item, dict):
                    self.check_complete(item, row)
                elif not isinstance(item, list) or len(item) != len(self.names):
                    form = f"an array of {len(item)}" if isinstance(item, list) else "neither an object nor an array"
                    raise BadInput(f"Row {row} is {form}; the model has {len(self.names)} columns.", row) from None
            return [self._pick(item) if isinstance(item, dict) else item for item in items]

    def _computed(self, read: np.ndarray, rows: Rows) -> Rows:
        import pandas as pd  # a second and 60 MB, only for such models

        raw: dict[str, Any] = {column.name: read[:, at] for at, column in enumerate(self.columns)}
        try:
            for at, column in enumerate(self.columns):
                if column.kind == "category":
                    codes = np.nan_to_num(read[:, at], nan=-1).astype("int64")
                    raw[column.name] = pd.Categorical.from_codes(codes, categories=pd.Index(column.known, dtype="str"))
                elif column.kind == "text":
                    texts = (row[at] if isinstance(row[at], str | None) else category(row[at]) for row in rows)
                    raw[column.name] = pd.Series([one or None for one in texts], dtype="str")
            features = self.computes.transform(pd.DataFrame(raw))  # type: ignore[union-attr]
            if len(features) != len(read):
                raise ValueError("it made another number of rows")
            columns = (features[column.name].astype("object") for column in self._features)
            return list(zip(*(one.where(one.notna(), None).tolist() for one in columns), strict=True))
        except Exception as error:  # whatever its author lets it raise: these records have no features
            problem = str(error).rstrip(".") if isinstance(error, ValueError) and str(error) else repr(error)
            raise BadInput(f"The model's features.py has no features of these records: {problem}.") from error


class Booster:
    """Trees by XGBoost's C library alone, as its package takes 3 s: https://xgboost.readthedocs.io/en/stable/c.html"""

    def __init__(self, trees: bytes, threads: int, missing: float | None = None) -> None:
        folder = Path(importlib.util.find_spec("xgboost").origin).parent / "lib"  # type: ignore[union-attr, arg-type]
        file = folder / ("libxgboost.dylib" if sys.platform == "darwin" else "libxgboost.so")
        self._library = ctypes.CDLL(str(file)) if file.exists() else importlib.import_module("xgboost").core._LIB
        self._library.XGBGetLastError.restype = ctypes.c_char_p
        self._handle, self._proxies = ctypes.c_void_p(), list[ctypes.c_void_p]()
        self._call("XGBoosterCreate", None, ctypes.c_uint64(0), ctypes.byref(self._handle))
        self._call("XGBoosterLoadModelFromBuffer", self._handle, trees, ctypes.c_uint64(len(trees)))
        self._call("XGBoosterSetParam", self._handle, b"nthread", str(threads).encode())
        self._call("XGBoosterGetNumFeature", self._handle, ctypes.byref(ctypes.c_uint64()))  # completes the loading
        settings = {"type": 0, "training": False, "iteration_begin": 0, "iteration_end": 0, "strict_shape": False}
        self._settings = json.dumps({**settings, "missing": math.nan if missing is None else missing}).encode()

    def predict(self, numbers: Any, rows: int, columns: int) -> np.ndarray:
        """Of float32 numbers in memory, row after row, of which there is at least one."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(numbers))
        out = shape, dimensions, content = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.c_void_p()
        matrix = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}' % (address, rows, columns)
        proxy = self._proxies.pop() if self._proxies else ctypes.c_void_p()
        if not proxy:  # a new one takes as long as the call
            self._call("XGProxyDMatrixCreate", ctypes.byref(proxy))
        self._call("XGBoosterPredictFromDense", self._handle, matrix, self._settings, proxy, *map(ctypes.byref, out))
        lengths = shape[: dimensions.value]
        scores = ctypes.string_at(content.value or 0, 4 * math.prod(lengths))
        self._proxies.append(proxy)
        return np.frombuffer(scores, "float32").reshape(lengths)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments):
            raise ValueError(self._library.XGBGetLastError().decode(errors="replace").splitlines()[0])


@functools.lru_cache(maxsize=256)
def accepted(accept: str) -> str:
    """The content type to answer with: of ours the one an Accept header likes best. Raises BadInput for none."""
    weighted: list[tuple[float, str]] = []
    for part in (accept.strip() or "*/*").lower().split(","):
        kind, *options = (one.strip() for one in part.split(";"))
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        if kind in ACCEPTED and NUMBER.fullmatch(weight) and float(weight) > 0:
            weighted.append((float(weight), ACCEPTED[kind]))
    if not weighted:
        raise BadInput(f"Accept {accept!r} has none of {', '.join(CONTENT_TYPES)}.", status=406)
    return max(weighted, key=itemgetter(0))[1]


def other_delimiter(line: str, error: csv.Error) -> str:
    """What separates the quoted fields of a table's first line where that is no comma, as the error says; else ""."""
    bare = re.sub('"[^"]*"', "", line)
    mark = max(";\t|", key=bare.count)
    return mark if "expected after" in str(error) and bare.count(mark) >= max(bare.count(","), 1) else ""


def within(numbers: np.ndarray) -> bool:
    """Whether XGBoost holds all of them, of which none is NaN."""
    return bool(numbers.max(initial=0) <= LARGEST and numbers.min(initial=0) >= -LARGEST)


def _picker(keys: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    return itemgetter(*keys) if len(keys) > 1 else lambda row: [row[key] for key in keys]


def category(value: object) -> str:
    """Text by which the numbers 657, 657.0, "657" and " 657 " are one."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return WHOLE.sub(r"\1", str(int(value) if whole else value).strip())  # type: ignore[call-overload]


def loaded(folder: Path, environment: Mapping[str, str]) -> Scorer:
    """The model beside `code/`. Raises ValueError unless its files have the hash in RUNNER_SHA256, runner.content's."""
    places = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    files = {name: places[name].read_bytes() for name in sorted(places) if not name.startswith("code/")}
    lines = (f"{hashlib.sha256(data).hexdigest()}  {len(data)}  {name}\n" for name, data in files.items())
    sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    deployed = environment.get("RUNNER_SHA256", sha256)
    if sha256 != deployed:
        raise ValueError(f"The model was altered: its hash is {sha256[:12]}, deployed was {deployed[:12]}.")
    unknown, model = environment.get("RUNNER_UNKNOWN", "error"), environment.get("RUNNER_MODEL", "")
    return Scorer(files, unknown=unknown, model=model).self_test()


def model_fn(model_dir: str) -> Scorer:
    return loaded(Path(model_dir), os.environ)


def transform_fn(model: Scorer, content: bytes | str, content_type: str, accept: str) -> Any:
    """The answer of the container's web server; a refusal is returned, as whatever is raised there becomes a 500.

    https://github.com/aws/sagemaker-containers/blob/master/src/sagemaker_containers/_transformer.py
    """
    import flask  # which the container has

    del content  # has U+FFFD for what is not UTF-8
    status, sent = 200, flask.request.environ["werkzeug.request"]
    try:
        accepted(accept)
        if sent.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise BadInput("Content-Encoding is not supported; send the body as it is.", status=415)
        body, kind = model.reply(model.score(model.table(sent.get_data(), content_type)), accept)
    except BadInput as error:
        status, body, kind = error.status, error.body(), JSON
    return flask.Response(body, status, {"x-model": model.model}, content_type=kind)
