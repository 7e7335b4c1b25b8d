"""Values are read by the declared type, or refused; what comes back is what went in."""

from __future__ import annotations

import ast
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.notebook.types import DoesNotFit, Type, check, infer, parse_annotation, read_text


def declared(annotation: str) -> Type | None:
    return parse_annotation(ast.parse(annotation, mode="eval").body)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("str", "007", "007"),
        ("int", "007", 7),
        ("int", "-3", -3),
        ("float", "5", 5.0),
        ("float", "1e-3", 0.001),
        ("bool", "true", True),
        ("bool", "False", False),
        ("str", "true", "true"),
        ("str", "1_000", "1_000"),
        ("int | None", "none", None),
        ("int | None", "4", 4),
        ("Optional[float]", "0.5", 0.5),
        ("str | None", "x", "x"),
        ("list[int]", "[1, 2]", [1, 2]),
        ("dict[str, float]", '{"a": 1}', {"a": 1.0}),
        ("Literal['cpu', 'cuda']", "cuda", "cuda"),
    ],
)
def test_text_is_read_by_the_declared_type(annotation: str, text: str, value: object) -> None:
    found = read_text(text, declared(annotation))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("int", "1_000"), ("int", "1.0"), ("int", "nan"), ("float", "nan"), ("float", "inf"), ("float", "1_0.5"),
        ("bool", "1"), ("bool", "yes"), ("list[int]", "1,2"), ("list[int]", '["a"]'), ("Literal['cpu']", "gpu"),
        ("int | None", "x"), ("float", "1e999"),
    ],
)  # fmt: skip
def test_text_that_does_not_fit_is_refused(annotation: str, text: str) -> None:
    with pytest.raises(DoesNotFit):
        read_text(text, declared(annotation))


@pytest.mark.parametrize("annotation", ["int", "float", "str", "list[int]", "int | None"])
def test_a_boolean_fits_nothing_but_bool(annotation: str) -> None:
    with pytest.raises(DoesNotFit):
        check(True, declared(annotation))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_plain_values_pass_an_undeclared_parameter_unchanged(value: object) -> None:
    assert check(value, None) == value
    assert check(value, infer(None)) == value


@given(st.integers() | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_value_written_as_text_comes_back_by_its_own_type(value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    found = read_text(text, infer(value))
    assert found == value
    assert type(found) is type(value)


@given(st.floats())
def test_no_float_that_is_not_finite_gets_through(value: float) -> None:
    if value != value or abs(value) == float("inf"):
        with pytest.raises(DoesNotFit):
            check([value], None)
    else:
        assert check(value, declared("float")) == value
