"""The SageMaker SDK as tests have it in their own process: it checks what it is given as ever, and its schema once."""

from __future__ import annotations

import functools
import sys
from typing import Any

SCHEMA = "sagemaker.core.config.config_schema"


def check_once() -> None:
    """Of each default that it looks up it validates its whole configuration, and first, for most of five seconds in each
    definition, the schema that this is compared with, which is a constant of its own. Twice is once."""
    from jsonschema.validators import validator_for

    checked = False
    kind = validator_for({})
    plain = kind.check_schema
    if hasattr(plain, "__wrapped__"):
        return

    @functools.wraps(plain)
    def check_schema(schema: Any, *arguments: Any, **options: Any) -> None:
        nonlocal checked
        own = vars(sys.modules[SCHEMA])["SAGEMAKER_PYTHON_SDK_CONFIG_SCHEMA"] if SCHEMA in sys.modules else None
        if schema is own and checked:
            return
        plain(schema, *arguments, **options)
        checked = checked or schema is own

    kind.check_schema = staticmethod(check_schema)  # type: ignore[method-assign]
