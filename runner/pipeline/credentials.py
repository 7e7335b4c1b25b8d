"""What looks like a credential, and taking it out of text. Forms as their issuers document them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MARK = "[redacted]"
SHORTEST = 4  # a secret value of fewer characters would blot out half of every output
FORMS = {
    "AWS access key id": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "AWS secret key": re.compile(r"(?i)(?<=aws_secret_access_key)(\W{1,5})[A-Za-z0-9/+=]{40}(?![A-Za-z0-9/+=])"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    "Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "Slack token": re.compile(r"\bxox[abposr]-[A-Za-z0-9-]{10,}"),
    "JSON web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    "password in an address": re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
}


class Redactor:
    """Takes the values of secret parameters, and what looks like a credential, out of text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values = sorted((value for value in secrets if len(value) >= SHORTEST), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, values))) if values else None
        self.found: list[str] = []

    def note(self, where: str, kinds: Iterable[str]) -> None:
        """Remember what was taken out, each once."""
        self.found += [said for kind in kinds if (said := f"{where}: {kind}") not in self.found]

    def text(self, text: str) -> tuple[str, list[str]]:
        """The text without them, and what kinds there were."""
        kinds = []
        if self._values is not None:
            text, count = self._values.subn(MARK, text)
            kinds += ["secret parameter"] * bool(count)
        for kind, form in FORMS.items():
            text, count = form.subn(MARK, text)
            kinds += [kind] * bool(count)
        return text, kinds

    def inside(self, value: Any) -> tuple[Any, list[str]]:
        """The same for every text in lists and dictionaries, keys apart; images stay as they are."""
        if isinstance(value, str):
            return self.text(value)
        kinds: list[str] = []
        if isinstance(value, list):
            pairs = [self.inside(item) for item in value]
            return [item for item, _ in pairs], [kind for _, found in pairs for kind in found]
        if isinstance(value, dict):
            made = {}
            for key, item in value.items():
                image = isinstance(key, str) and key.startswith("image/") and key != "image/svg+xml"
                made[key], found = (item, []) if image else self.inside(item)
                kinds += found
            return made, kinds
        return value, kinds
