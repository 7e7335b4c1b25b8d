"""Jupyter's installed kernels by name: how one is started, and whether it is this interpreter's own.

Does what jupyter_client's KernelManager does with a kernelspec before it starts a process.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from runner.errors import PipelineError

GENERIC = {"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
PLACE = re.compile(r"\{(prefix|resource_dir)\}")


@dataclass(frozen=True)
class InstalledKernel:
    argv: list[str]  # `{connection_file}` stands for the file's path
    environment: dict[str, str]  # what it wants beside the runner's own

    @property
    def is_ipykernel(self) -> bool:
        return self.argv[1:3] in (["-m", "ipykernel_launcher"], ["-m", "ipykernel"])

    @property
    def is_this_interpreters(self) -> bool:
        """ipykernel in this interpreter, by whichever of its names in its folder, with no arguments of its own."""
        named, own = Path(self.argv[0]), Path(sys.executable)
        same = (named.parent.resolve(), named.resolve()) == (own.parent.resolve(), own.resolve())
        return self.is_ipykernel and same and self.argv[3:] == ["-f", "{connection_file}"]


def kernel_for(language: str, name: str | None) -> InstalledKernel:
    """Of a notebook in `language`, with the name of a kernel or None. Raises PipelineError where it is not installed."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        return installed_kernel(name or language)
    except NoSuchKernel:
        installed = ", ".join(sorted(KernelSpecManager().find_kernel_specs())) or "none"
        raise PipelineError(
            f"its kernel {name or language!r} ({language}) is not installed here: install it, or choose another in "
            f"Jupyter ({installed})."
        ) from None


def installed_kernel(name: str) -> InstalledKernel:
    """Raises jupyter_client's NoSuchKernel. `python` is this interpreter's, as everywhere in Jupyter."""
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager  # 0.1 s, and seldom needed

    spec: Any = KernelSpecManager().get_kernel_spec(NATIVE_KERNEL_NAME if name == "python" else name)
    places = {"prefix": sys.prefix, "resource_dir": spec.resource_dir}
    argv = [PLACE.sub(lambda found: places[found[1]], part) for part in spec.argv]
    argv[0] = sys.executable if argv[0] in GENERIC else argv[0]
    if argv[1:2] == ["-Xfrozen_modules=off"]:  # for the debugger, which nobody attaches here
        del argv[1]
    environment = {key: Template(value).safe_substitute(os.environ) for key, value in spec.env.items()}
    return InstalledKernel(argv, environment)
