"""Images: folders of programs that a container finds first on its PATH, and the user it runs as."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .errors import NotPermittedError

# Amazon SageMaker Distribution 4.4, as far as notebooks of tables and trees need it; it has no scrapbook.
DISTRIBUTION_PYTHON = "3.12"
DISTRIBUTION = (
    "papermill==2.7.0",
    "nbclient==0.11.*",
    "xgboost-cpu==2.1.4",
    "pandas==2.3.3",
    "boto3==1.43.56",
    "ipykernel>=7",
    "pyarrow>=21",
    "scikit-learn>=1.7",
    "matplotlib>=3.10",
)


User = Literal["root", "1000", "sagemaker-user"]
HOMES: dict[User, str] = {"root": "/root", "1000": "/", "sagemaker-user": "/home/sagemaker-user"}


@dataclass(frozen=True)
class Image:
    """A folder with a `bin`, bound read-only at the same place into each container; so are the folders of `also`.

    `user` is its Dockerfile's last USER. /opt/ml is root's, whoever that is.
    1000: a bare number, with no entry in /etc/passwd, so that its home is `/`, and with no way to become root.
    sagemaker-user: SageMaker Distribution's, number 1000 with a home of its own and `sudo` without a password.
    `warm`: containers that are to start its Python are forks of one that is begun already (interpreter.py).
    """

    path: str
    also: tuple[str, ...] = ()
    user: User = "1000"
    warm: bool = False

    @property
    def home(self) -> str:
        return HOMES[self.user]

    def folders(self) -> list[Path]:
        """What a container needs of this machine; no folder lies in another one, nor in the system's own."""
        wanted = [Path(self.path).resolve(), *(Path(folder).resolve() for folder in self.also)]
        python = Path(self.path, "bin", "python")
        if python.exists():  # a virtual environment has its standard library elsewhere
            wanted.append(python.resolve().parents[1])
        kept: list[Path] = []
        for folder in sorted(set(wanted)):
            if not any(folder.is_relative_to(other) for other in (*kept, Path("/usr"), Path("/etc"))):
                kept.append(folder)
        return kept


def own_image(user: User = "1000", *, warm: bool = False) -> Image:
    """The environment this runs in, as an image built from the project's lock file would have it."""
    return Image(sys.prefix, user=user, warm=warm)


def distribution_image(folder: str | os.PathLike[str] | None = None) -> Image:
    """SageMaker Distribution's Python, versions and user in a virtual environment, built once per machine (a minute).

    It is compiled as it is built: containers see it read-only and would compile it anew for every job.

    Raises subprocess.CalledProcessError where the package index does not answer, and NotPermittedError where there is
    no Python of its version.
    """
    python = find_python(DISTRIBUTION_PYTHON)
    content = "\n".join((python, *DISTRIBUTION)).encode()
    made = kept_image("distribution-4.4-compiled", content, lambda folder: build(folder, python), folder)
    return replace(made, user="sagemaker-user")


def kept_image(
    name: str, content: bytes, build: Callable[[Path], None], folder: str | os.PathLike[str] | None = None
) -> Image:
    """The image of this content, built once per machine, whoever asks for it at the same time."""
    base = Path(folder) if folder else Path(tempfile.gettempdir()) / "small-sagemaker-images"
    base.mkdir(parents=True, exist_ok=True)
    made = base / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    with open(base / f"{made.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / ".ready").exists():
            shutil.rmtree(made, ignore_errors=True)
            build(made)
            (made / ".ready").touch()
    return Image(str(made))


def find_python(version: str) -> str:
    """A Python of this version: one that is installed, or that uv keeps or fetches.

    Raises NotPermittedError where none is here and none can be fetched.
    """
    if python := installed_python(version):
        return python
    uv = Path(sys.executable).parent / "uv"
    for command in (["install", "--quiet"], ["find", "--managed-python"]):
        done = subprocess.run([uv, "python", *command, version], capture_output=True, text=True)
    if done.returncode:
        raise NotPermittedError(f"there is no Python {version} here, and uv could not fetch one: {done.stderr.strip()}")
    return done.stdout.strip()


def installed_python(version: str) -> str | None:
    """The system's or pyenv's Python of this version that starts; None where there is none."""
    known = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))]
    for python in filter(None, known):
        if not subprocess.run([python, "-c", "import ssl, venv"], capture_output=True).returncode:
            return str(python)
    return None


def build(made: Path, python: str) -> None:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", python, made], check=True)
    install: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--compile-bytecode",
        "--python",
        made / "bin" / "python",
    ]
    subprocess.run([*install, *DISTRIBUTION], check=True)
