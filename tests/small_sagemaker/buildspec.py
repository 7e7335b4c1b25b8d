"""A buildspec's commands as CodeBuild runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PHASES = ("install", "pre_build", "build", "post_build")


def script(spec: Mapping[str, Any]) -> str:
    """The commands of all phases for one shell, which CodeBuild keeps; the first that fails ends it."""
    commands = [one for phase in PHASES for one in spec["phases"].get(phase, {}).get("commands", [])]
    return "\n".join(f"{one.rstrip()}\nresult=$?; [ $result -eq 0 ] || exit $result" for one in commands)
