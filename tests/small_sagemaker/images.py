"""Images: folders of programs that a container finds first on its PATH."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Amazon SageMaker Distribution 4.4, as far as notebooks of tables and trees need it; it has no scrapbook.
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


@dataclass(frozen=True)
class Image:
    """A folder with a `bin`, bound read-only at the same place into each container; so are the folders of `also`."""

    path: str
    python: str = "3.11"
    also: tuple[str, ...] = ()

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


def own_image() -> Image:
    """The environment this runs in, as an image built from the project's lock file would have it."""
    return Image(sys.prefix)


def distribution_image(folder: str | os.PathLike[str] | None = None) -> Image:
    """SageMaker Distribution's versions in a virtual environment, built once per machine (a minute) and kept.

    It is compiled as it is built: containers see it read-only and would compile it anew for every job.

    Raises subprocess.CalledProcessError where the package index does not answer.
    """
    return kept_image("distribution-4.4-compiled", "\n".join(DISTRIBUTION).encode(), build, folder)


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


def build(made: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, made], check=True)
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
