"""IAM policies as IAM evaluates them: a Deny that fits refuses, else an Allow that fits allows, else nothing does.

The rules are those of IAM's "Policy evaluation logic" and "IAM JSON policy elements", as far as identity-based policies go.
What is not known here raises NotImplementedError: a policy must not be taken for a narrower or wider one than it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Statement = Mapping[str, Any]
ELEMENTS = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
VARIABLE = re.compile(r"\$\{([^}]+)\}")
LITERAL = {"*": "[*]", "?": "[?]", "$": "$"}  # ${*} is a star and no wildcard


@dataclass(frozen=True)
class Request:
    """What IAM is asked. Keys of the context are in small letters; one that is not there was not sent."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def allowing(statements: Sequence[Statement], request: Request) -> list[str]:
    """The Sids, or else numbers, of the statements that allow the request; none where one denies it."""
    fitting = [(number, one) for number, one in enumerate(statements) if fits(one, request)]
    if any(one["Effect"] == "Deny" for _, one in fitting):
        return []
    return [str(one.get("Sid", number)) for number, one in fitting]


def fits(statement: Statement, request: Request) -> bool:
    unknown = statement.keys() - ELEMENTS
    if unknown or statement["Effect"] not in ("Allow", "Deny"):
        raise NotImplementedError(f"this statement is not understood: {statement}")
    action = request.action.lower()
    named = any(like(action, pattern.lower()) for pattern in many(statement.get("Action", statement.get("NotAction"))))
    if named != ("Action" in statement):
        return False
    place = any(
        like(request.resource, filled(pattern, request.context))
        for pattern in many(statement.get("Resource", statement.get("NotResource")))
    )
    return place == ("Resource" in statement) and all(
        meets(operator, request.context.get(key.lower()), [filled(str(one), request.context) for one in many(wanted)])
        for operator, keys in statement.get("Condition", {}).items()
        for key, wanted in keys.items()
    )


def equal(found: str, wanted: str) -> bool:
    return found == wanted


def equal_but_for_case(found: str, wanted: str) -> bool:
    return found.lower() == wanted.lower()


def like(found: str, pattern: str) -> bool:
    return compiled(pattern).fullmatch(found) is not None


OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": equal,
    "StringEqualsIgnoreCase": equal_but_for_case,
    "StringLike": like,
    "ArnEquals": like,
    "ArnLike": like,
    "Bool": equal_but_for_case,
    "NumericLessThanEquals": lambda found, wanted: float(found) <= float(wanted),
}
NEGATED = {"StringNotEquals": "StringEquals", "StringNotLike": "StringLike", "ArnNotLike": "ArnLike"}


def meets(operator: str, found: str | None, wanted: Sequence[str]) -> bool:
    """One key of a condition; several wanted values are alternatives. A negated operator holds where the key is absent."""
    if operator == "Null":
        return (found is None) == (wanted[0].lower() == "true")
    name = operator.removesuffix("IfExists")
    if name not in OPERATORS and name not in NEGATED:
        raise NotImplementedError(f"this operator is not understood: {operator}")
    if found is None:
        return operator != name or name in NEGATED
    compare = OPERATORS[NEGATED.get(name, name)]
    return any(compare(found, one) for one in wanted) != (name in NEGATED)


@functools.lru_cache(10_000)
def compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\[[*?]\]|[*?])", pattern)
    made = {"*": ".*", "?": ".", "[*]": r"\*", "[?]": r"\?"}
    return re.compile("".join(made.get(part, re.escape(part)) for part in parts), re.DOTALL)


def filled(text: str, context: Mapping[str, str]) -> str:
    """The text with policy variables put in; one that has no value fits nothing, so it stays as it is written."""
    return VARIABLE.sub(lambda found: LITERAL.get(found[1]) or context.get(found[1].lower(), found[0]), text)


def many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
