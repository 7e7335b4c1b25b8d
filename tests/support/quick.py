"""Which tests need no kernel, browser, cloud or process: read from the code that a test and its fixtures come to."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from support.projects import Project

# what starts something, by the name that it is called by
STARTS = {
    "AsyncKernelManager", "browser", "by_papermill", "by_step", "execute_notebook", "fork", "ForkServer", "getfixturevalue", "KernelManager", "LocalExecutor",
    "NotebookClient", "papermill_cli", "placed", "Popen", "program", "running", "SmallSageMaker", "subprocess",
}  # fmt: skip
OF_A_PROJECT = {"runner", "start"}  # its methods that run the command line
GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")


def quick(item: pytest.Function) -> bool:
    """Whether nothing that the test comes to starts a process. A slow test of arithmetic is quick here."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    pending = [item.function, *(definition.func for found in fixtures for definition in found)]
    seen = set[Any]()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        for name, attribute in _names(function.__code__):
            if name in STARTS or (attribute and name in OF_A_PROJECT):
                return False
            if not attribute:
                pending += _ours(function.__globals__.get(name))
    return True


@functools.cache
def _names(code: CodeType) -> frozenset[tuple[str, bool]]:
    """(name, whether it is an attribute) of all that the code and the functions in it refer to."""
    return frozenset(_each_name(code))


def _each_name(code: CodeType) -> Iterator[tuple[str, bool]]:
    for step in dis.get_instructions(code):
        if isinstance(step.argval, str):
            yield step.argval, step.opname not in GLOBALS
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _each_name(inner)


def _ours(value: Any) -> list[FunctionType]:
    """The functions of a helper of the tests: itself, or a class's."""
    value = getattr(value, "__wrapped__", value)
    if not getattr(value, "__module__", "").startswith(("support.", "test_")) or value is Project:
        return []
    found = vars(value).values() if isinstance(value, type) else [value]
    return [one for one in found if isinstance(one, FunctionType)]
