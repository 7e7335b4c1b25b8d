"""What scores by other models than XGBoost's: ONNX graphs by onnxruntime, LightGBM's trees by its C library.

`runner.scoring.inference` has read the records by then, and takes a runtime by the name of the model's file. Imports
nothing of ours, so it can stand beside inference.py in a container.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MISSING = "\x01missing"  # what a graph gets for a text that is missing; no request can have it as a category
WITHOUT = "This environment has no {}, which scores {}: pip install {}."
FLOAT64, NORMAL, ROW_MAJOR = 1, 0, 1  # of LightGBM's C interface: a type of data, a kind of prediction, a layout


class Runtime:
    """A model that does not score every record: which columns may not be missing stands in the signature."""

    def __init__(
        self, files: Mapping[str, bytes], signature: Mapping[str, Any], threads: int, refusal: Callable[..., ValueError]
    ) -> None:
        """`refusal` makes the error for a record without a score, of a sentence, its row from 1 and its column."""
        self._refusal = refusal
        name = next((name for name in MODELS if name in files), None)
        if name is None:
            raise ValueError(f"The folder has no model: none of model.ubj, model.json, {', '.join(MODELS)}.")
        self._model = MODELS[name](files[name], signature, threads)
        names = [column["name"] for column in signature.get("features") or signature["columns"]]
        self._required = [(names.index(name), name) for name in signature.get("required", ())]

    def predict(self, numbers: array[float] | np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Of float64 numbers, row after row: float32, shape (n_rows,) or (n_rows, n_classes).

        Raises the refusal for the first row that has no score.
        """
        flat = np.frombuffer(numbers, dtype="float64") if isinstance(numbers, array) else numbers
        matrix = flat.reshape(rows, columns)
        for at, name in self._required:
            if (gaps := np.isnan(matrix[:, at])).any():
                row = int(gaps.argmax()) + 1
                raise self._refusal(
                    f"Row {row}, column {name}: the value is missing, and the model needs it.", row, name
                )
        try:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is then refused
                scores: np.ndarray = self._model.predict(matrix).astype("float32")
        except ValueError as error:
            row = 1 if rows == 1 else next(row for row in range(1, rows + 1) if not self._takes(matrix[row - 1 : row]))
            raise self._refusal(f"Row {row}: the model has no score for it: {error}", row) from error
        if not (finite := np.isfinite(scores)).all():
            row = int(finite.reshape(rows, -1).all(axis=1).argmin()) + 1
            raise self._refusal(
                f"Row {row}: the model's score is no finite number. Is a value missing that it needs?", row
            )
        return scores

    def _takes(self, row: np.ndarray) -> bool:
        try:
            self._model.predict(row)
        except ValueError:
            return False
        return True


class Onnx:
    """A graph with an input for each column, shape (n_rows, 1), and one output.

    Always by one thread: with several, a forest's trees are added in another order, and so to other last bits.
    """

    def __init__(self, graph: bytes, signature: Mapping[str, Any], threads: int) -> None:
        del threads
        runtime = _imported("onnxruntime", "model.onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # or memory stays as the largest batch had it
        options.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, which share no base but this
            raise ValueError(f"onnxruntime does not load model.onnx: {_first_line(error)}") from error
        self._single = _single_record(signature)
        types = {one.name: one.type for one in self._session.get_inputs()}
        columns = signature.get("features") or signature["columns"]
        self._feeds = [
            (at, one["name"], _feed(types[one["name"]], one.get("categories")))
            for at, one in enumerate(columns)
            if one["name"] in types
        ]
        self._outputs = [self._session.get_outputs()[0].name]

    def predict(self, matrix: np.ndarray) -> Any:
        """Of float64 numbers, a category's by its place: numbers of shape (n_rows,) or (n_rows, n_classes).

        Raises ValueError where a node of the graph does not take one of the values.
        """
        inputs = {name: feed(matrix[:, at : at + 1]) for at, name, feed in self._feeds}
        try:
            (scores,) = self._session.run(self._outputs, inputs)
        except Exception as error:
            raise ValueError(_first_line(error)) from error
        return scores.reshape(len(matrix)) if self._single else scores


class LightGBM:
    """By https://lightgbm.readthedocs.io/en/stable/C-API.html, as its package takes seconds, and long for a row."""

    def __init__(self, trees: bytes, signature: Mapping[str, Any], threads: int) -> None:
        self._library = _lightgbm()
        self._handle, rounds = ctypes.c_void_p(), ctypes.c_int()
        usual = ctypes.c_int()
        self._call("LGBM_GetMaxThreads", ctypes.byref(usual))
        self._call("LGBM_SetMaxThreads", 1)  # a parallel region that ran before a fork hangs in every child
        try:
            self._call("LGBM_BoosterLoadModelFromString", trees, ctypes.byref(rounds), ctypes.byref(self._handle))
        finally:
            self._call("LGBM_SetMaxThreads", usual)
        classes, features = ctypes.c_int(), ctypes.c_int()
        self._call("LGBM_BoosterGetNumClasses", self._handle, ctypes.byref(classes))
        self._call("LGBM_BoosterGetNumFeature", self._handle, ctypes.byref(features))
        if features.value != len(signature.get("features") or signature["columns"]):
            raise ValueError("model.txt was trained on another number of columns than signature.json has.")
        self._classes, self._columns = classes.value, features.value
        self._settings = f"num_threads={threads}".encode()  # 0: all
        self._rows = list[tuple[ctypes.c_void_p, Any, Any]]()  # what scores a single row; one for each thread that does

    def predict(self, matrix: np.ndarray) -> Any:
        """As `Onnx.predict`, float64. It takes every number."""
        matrix = np.ascontiguousarray(matrix)
        if len(matrix) == 1:
            return self._one(matrix)
        rows, columns = matrix.shape
        scores, length = np.empty(rows * self._classes), ctypes.c_int64()
        self._call(
            "LGBM_BoosterPredictForMat", self._handle, matrix.ctypes.data_as(ctypes.c_void_p), FLOAT64,
            ctypes.c_int32(rows), ctypes.c_int32(columns), ROW_MAJOR, NORMAL, 0, -1, self._settings,
            ctypes.byref(length), scores.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        return scores if self._classes == 1 else scores.reshape(rows, self._classes)

    def _one(self, row: np.ndarray) -> np.ndarray:
        config, scores, length = self._rows.pop() if self._rows else self._single_row()
        address = ctypes.c_void_p(row.__array_interface__["data"][0])
        self._call("LGBM_BoosterPredictForMatSingleRowFast", config, address, length, scores)
        answer = np.array(scores)
        self._rows.append((config, scores, length))
        return answer if self._classes == 1 else answer.reshape(1, -1)

    def _single_row(self) -> tuple[ctypes.c_void_p, Any, Any]:
        config = ctypes.c_void_p()
        self._call(
            "LGBM_BoosterPredictForMatSingleRowFastInit", self._handle, NORMAL, 0, -1, FLOAT64,
            ctypes.c_int32(self._columns), b"num_threads=1", ctypes.byref(config),
        )  # fmt: skip
        return config, (ctypes.c_double * self._classes)(), ctypes.byref(ctypes.c_int64())

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments):
            raise ValueError(f"LightGBM: {self._library.LGBM_GetLastError().decode(errors='replace')[:300]}")


def _feed(kind: str, categories: Sequence[str] | None) -> Callable[[np.ndarray], np.ndarray]:
    """What makes a column's float64 numbers the input that the graph declares, a category by its place in the list."""
    if categories is None:
        return (lambda numbers: numbers) if kind == "tensor(double)" else lambda numbers: numbers.astype("float32")
    if kind == "tensor(string)":
        known = np.array([*categories, MISSING], dtype=object)
    else:
        known = np.array([*map(float, categories), np.nan], "float64" if kind == "tensor(double)" else "float32")
    last = len(known) - 1

    def read(numbers: np.ndarray) -> np.ndarray:
        inputs: np.ndarray = known[np.where(np.isnan(numbers), last, numbers).astype("int64")]
        return inputs

    return read


def _single_record(signature: Mapping[str, Any]) -> bool:
    """Whether a record's score is one number."""
    return str(signature["objective"]) != "multi:softprob"


def _lightgbm() -> Any:
    """The library, quiet; that of the package where somebody has loaded it, whose log goes where the package says."""
    spec = importlib.util.find_spec("lightgbm")
    if spec is None or spec.origin is None:
        raise ValueError(WITHOUT.format("LightGBM", "model.txt", "lightgbm"))
    folder = Path(spec.origin).parent / "lib"
    file = folder / ("lib_lightgbm.dylib" if sys.platform == "darwin" else "lib_lightgbm.so")
    library = ctypes.CDLL(str(file)) if file.exists() else importlib.import_module("lightgbm").basic._LIB
    library.LGBM_GetLastError.restype = ctypes.c_char_p
    if "lightgbm" not in sys.modules:
        library.LGBM_RegisterLogCallback(QUIET)
    return library


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda _: None)


def _imported(module: str, file: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(WITHOUT.format(module, file, module)) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


MODELS: dict[str, Callable[[bytes, Mapping[str, Any], int], Onnx | LightGBM]] = {
    "model.onnx": Onnx,
    "model.txt": LightGBM,
}
