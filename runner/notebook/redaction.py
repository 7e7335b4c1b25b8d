"""What looks like a credential, and taking it out of text. Forms as their issuers document them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

MARK = "[redacted]"
SHORTEST = 4  # a secret value of fewer characters would blot out half of every output
FORMS = {
    "AWS access key id": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "AWS secret key": re.compile(r"(?i)(?<=aws_secret_access_key)(\W{1,5})[A-Za-z0-9/+=]{40}(?![A-Za-z0-9/+=])"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    "Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "Slack token": re.compile(r"\bxox[abposr]-[A-Za-z0-9-]{10,}"),
    "JSON web token": re.compile(r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    "password in an address": re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
    # AWS, Google Cloud; Azure's `sig` is an HMAC-SHA256 in base64, percent-encoded
    "signed address": re.compile(r"(?<=-Signature=)[0-9a-f]{64,}|(?<=[?&;]sig=)[A-Za-z0-9%+/]{43,}(?:%3D|=)?", re.I),
}
_SLASH, _AFTER = r"(?:\\|%(?:25){0,3}5[cC])", r"(?:(?<=\\)|(?<=5[cC]))"  # a backslash, however often escaped itself


class Redactor:
    """Takes the values of secret parameters, and what looks like a credential, out of text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values = sorted((value for value in secrets if len(value) >= SHORTEST), key=len, reverse=True)
        # of each, what stands in all of its forms but base64, so that most texts are looked through in no time
        self._values = [(_core(value), re.compile("|".join(_written(value)))) for value in values]
        self._packed = re.compile("|".join(form for value in values for form in _packed(value)) or "(?!)")
        self.found: list[str] = []

    def note(self, where: str, kinds: Iterable[str]) -> None:
        """Remember what was taken out, each once."""
        self.found += [said for kind in dict.fromkeys(kinds) if (said := f"{where}: {kind}") not in self.found]

    def text(self, text: str) -> tuple[str, list[str]]:
        """The text without them, and what kinds there were."""
        kinds = []
        for core, form in self._values:
            if core in text:
                text, count = form.subn(MARK, text)
                kinds += ["secret parameter"] * bool(count)
        text, count = self._packed.subn(MARK, text)
        kinds += ["secret parameter"] * bool(count)
        for kind, form in FORMS.items():
            text, count = form.subn(MARK, text)
            kinds += [kind] * bool(count)
        return text, kinds

    def inside(self, value: Any, *, images: bool = True) -> tuple[Any, list[str]]:
        """The same for every text in lists and dictionaries, their keys too. The bytes of images stay as they are."""
        if isinstance(value, str):
            return self.text(value)
        kinds: list[str] = []
        if isinstance(value, list):
            pairs = [self.inside(item, images=images) for item in value]
            return [item for item, _ in pairs], [kind for _, found in pairs for kind in found]
        if isinstance(value, dict):
            made = {}
            for key, item in value.items():
                name, found = self.text(key) if isinstance(key, str) else (key, [])
                is_image = images and isinstance(item, str) and name.startswith("image/") and name != "image/svg+xml"
                made[name], more = (item, []) if is_image else self.inside(item, images=images)
                kinds += [*found, *more]
            return made, kinds
        return value, kinds


def _written(secret: str) -> Iterator[str]:
    """Expressions for the secret as it stands, as SQL, CSV and shells quote it, and as repr, JSON, URLs and HTML write
    it, once or several times over. No two parts of one compete for the same characters: looking takes time by the
    length of the text."""
    for old, new in (("", ""), ("'", "''"), ('"', '""'), ("'", "'\"'\"'"), ("'", "'\\''")):
        if old in secret:
            yield re.escape(secret.replace(old, new) if old else secret)
    yield "".join(_letter(letter, len(list(run))) for letter, run in groupby(secret))


def _packed(secret: str) -> Iterator[str]:
    """Expressions for base64 of the secret and its surroundings, for each place among the three bytes it takes at once."""
    import base64

    content = secret.encode("utf-8", "surrogatepass")
    for before in range(3):
        packed = base64.b64encode(b"\0" * before + content).decode()
        sure = packed[(8 * before + 5) // 6 : 8 * (before + len(content)) // 6]  # what its neighbours do not change
        if len(sure) >= 8:  # fewer occur by chance
            yield sure.replace("+", "[+-]").replace("/", "[/_]")


def _core(secret: str) -> str:
    """The longest part that every encoding keeps."""
    found: list[str] = re.findall(r"[A-Za-z0-9_.~-]*", secret)
    return max(found, key=len)


def _letter(letter: str, count: int) -> str:
    """The letter so many times. ASCII letters, digits and `_-.~` nobody encodes."""
    if _is_plain(letter):
        return re.escape(letter * count)
    from html.entities import codepoint2name

    code, encoded = ord(letter), letter.encode("utf-8", "surrogatepass")
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    names = {codepoint2name.get(code), "apos" if letter == "'" else None} - {None}
    escapes = [
        f"{_SLASH}{{1,16}}".join(f"u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4)),
        f"{_SLASH}{{1,16}}".join(f"x(?i:{byte:02x})" for byte in encoded),
        f"U(?i:{code:08x})",
        f"x(?i:{code:02x})",
        *{"\n": "n", "\r": "r", "\t": "t"}.get(letter, ""),
    ]
    forms = [
        "".join(f"%(?:25){{0,3}}(?i:{byte:02x})" for byte in encoded),
        f"&(?:amp;){{0,3}}(?:#0*{code}|#[xX]0*(?i:{code:x}){''.join(f'|{name}' for name in names)});",
        f"{_AFTER}(?:{'|'.join(escapes)})",
    ]
    if letter == "\\":
        return rf"(?:{_SLASH}{{{count},{16 * count}}}+|(?:{_SLASH}{{0,16}}+(?:{'|'.join(forms[1:])})){{{count}}})"
    forms += [r"\+"] * (letter == " ") + [re.escape(letter)]
    return rf"(?:{_SLASH}{{0,16}}+(?:{'|'.join(forms)})){{{count}}}"


def _is_plain(letter: str) -> bool:
    return (letter.isascii() and letter.isalnum()) or letter in "_-.~"
