"""A pytest plugin for papermill's own tests: what they execute without naming an engine is executed by ours."""

from __future__ import annotations

from papermill.engines import papermill_engines


def pytest_configure() -> None:
    papermill_engines.register(None, papermill_engines.get_engine("runner"))
