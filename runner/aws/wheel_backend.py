"""Makes the wheel of an endpoint's code folder, without anything from a package index.

When an instance starts, SageMaker's serving image runs `pip install .` in that folder. Of a folder without a build
backend of its own pip fetches setuptools first, so an endpoint would need the index whenever it scales.
Hooks: https://peps.python.org/pep-0517/ · files: https://packaging.python.org/en/latest/specifications/
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

MODULES = ("inference.py", "runtimes.py")  # of which an archive may have the first alone
INFO = "inference-1.dist-info"
METADATA = b"Metadata-Version: 2.1\nName: inference\nVersion: 1\n"
WHEEL = b"Wheel-Version: 1.0\nGenerator: runner\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: object = None) -> str:
    """The wheel's name; pip calls this in the code folder."""
    del config_settings, metadata_directory  # pip's, and nothing here depends on them
    files = {name: Path(name).read_bytes() for name in MODULES if Path(name).exists()}
    files |= {f"{INFO}/METADATA": METADATA, f"{INFO}/WHEEL": WHEEL}
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items()]
    files[f"{INFO}/RECORD"] = "".join([*lines, f"{INFO}/RECORD,,\n"]).encode()
    made = Path(wheel_directory, "inference-1-py3-none-any.whl")
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.name


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
