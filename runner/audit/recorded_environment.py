"""The environment a run recorded, built anew in a throw-away folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runner.errors import RemoteError
from runner.manifest import Environment

OWN = ("papermill-runner", "runner")  # runs from where it is now; what an index has of that name is not this program


def run_in_recorded_environment(environment: Environment, arguments: Sequence[str]) -> int:
    """Install the recorded packages with uv and run this program's command line there; its exit code.

    Raises RemoteError where the interpreter or a package is not to be had.
    """
    with tempfile.TemporaryDirectory(prefix="recorded-") as folder:
        place = Path(folder) / "env"
        pins = Path(folder) / "requirements.txt"
        pins.write_text(
            "".join(f"{name}=={version}\n" for name, version in environment.packages.items() if name not in OWN)
        )
        _uv("venv", "--quiet", "--python", environment.python, str(place))
        python = str(place / "bin" / "python")
        _uv("pip", "install", "--quiet", "--no-deps", "--python", python, "-r", str(pins))
        code = str(Path(__file__).resolve().parents[2])
        # the kernels of the steps need this program too
        done = subprocess.run(
            [python, "-m", "runner", *arguments], env={**os.environ, "PYTHONPATH": code}, cwd=folder, check=False
        )
        return done.returncode


def _uv(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RemoteError(f"The recorded environment cannot be built: uv {arguments[0]}: {done.stderr.strip()[-600:]}")
