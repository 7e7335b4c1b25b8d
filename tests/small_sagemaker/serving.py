"""Containers of endpoints: AWS's image for XGBoost 3.2 as far as a model's script meets it, without a network.

nginx, gunicorn and sagemaker-containers' Worker and Transformer, pandas and XGBoost in the image's versions. As there,
`serve` installs the model's code folder with `pip install .` when the container starts. It may write to /etc and to the
image, which end with it; its network is a loopback device.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import io
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .container import CLONE_NEWNET, SYSTEM_PATH, Container
from .errors import NotPermittedError
from .images import DISTRIBUTION_PYTHON, Image, installed_python, kept_image

SOURCE = Path(__file__).parent / "xgboost_image"
PORT = 8080
READY_S = 120.0
TOLD = {
    "SAGEMAKER_SERVING_MODULE": "xgboost_serving:main",
    "OMP_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}
# serve writes nginx's configuration, and pip installs: into memory, over what is bound read-only
WRITABLE = """
set -e
mount -t tmpfs tmpfs /run
for folder in /etc "$1"; do
    mkdir -p "/run/new$folder" "/run/work$folder"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=/run/new$folder,workdir=/run/work$folder" "$folder"
done
exec "$1/bin/serve"
"""


def xgboost_image() -> Image:
    """AWS's packages in a virtual environment, built once per machine (a minute) and kept.

    Raises NotPermittedError where this machine has no nginx, subprocess.CalledProcessError where the package index does
    not answer.
    """
    if shutil.which("nginx", path=SYSTEM_PATH) is None:
        raise NotPermittedError("an endpoint's container needs nginx, which is not installed here")
    lock, script = SOURCE / "image.lock", SOURCE / "xgboost_serving.py"
    made = kept_image("xgboost-3.2", lock.read_bytes() + script.read_bytes(), _build)
    return replace(made, user="root")  # its Dockerfile names no other


def _build(made: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    python = installed_python(DISTRIBUTION_PYTHON) or sys.executable  # the image's, where this machine has it
    subprocess.run([uv, "venv", "--quiet", "--python", python, made], check=True)
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", made / "bin" / "python"]
    subprocess.run([*install, "--no-deps", "--require-hashes", "-r", SOURCE / "image.lock"], check=True)
    (packages,) = made.glob("lib/python*/site-packages")
    shutil.copy(SOURCE / "xgboost_serving.py", packages)
    mapping = packages / "sagemaker_containers" / "_mapping.py"  # as AWS's Dockerfile does it
    mapping.write_text(mapping.read_text().replace("collections.Mapping", "collections.abc.Mapping"))


def runner_image(folder: Path, dockerfile: Path, package: Path) -> Image:
    """What infra/Dockerfile says of serving: the `serve` that it writes and the package that it copies, in `folder`; the
    packages and the Python are those that this runs in."""
    text = dockerfile.read_text(encoding="utf-8")
    written = re.search(r"^RUN printf '(.+)' > /usr/local/bin/serve", text, re.MULTILINE)
    copied = re.search(r"^COPY runner (\S+)/runner$", text, re.MULTILINE)
    assert written, "infra/Dockerfile writes no `serve`"
    assert copied, "infra/Dockerfile copies no package"
    shutil.copytree(package, folder / "package" / "runner", ignore=shutil.ignore_patterns("__pycache__"))
    programs = {
        "serve": written[1].replace("\\n", "\n").replace(copied[1], f"{folder}/package"),
        "python3": f'#!/bin/sh\nexec {shlex.quote(sys.prefix)}/bin/python3 "$@"\n',
    }
    (folder / "bin").mkdir()
    for name, content in programs.items():
        (folder / "bin" / name).write_text(content)
        (folder / "bin" / name).chmod(0o755)
    return Image(str(folder), also=(sys.prefix, sys.base_prefix), user="root")


class ServingContainer(Container):
    """One instance of an endpoint: a model's archive and what CreateModel's environment says, answering at `url`.

    Raises RuntimeError, with the container's log, where /ping is not answered by 200.
    """

    def __init__(self, image: Image, archive: bytes, environment: Mapping[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="endpoint-"))
        super().__init__(self._folder, image)
        for name in ("opt/ml/model", "var/lib/nginx", "var/log/nginx"):
            (self.root / name).mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(self.host("/opt/ml/model"), filter="data")
        self._said: list[bytes] = []
        path = f"{image.path}/bin:{SYSTEM_PATH}"
        workers = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}  # the image has one for each core
        given = {**TOLD, **workers, **environment, "PATH": path}
        # nothing listens on the second port: the container reaches no service
        super().start(["/bin/sh", "-c", WRITABLE, "sh", image.path], given, port=PORT + 1).close()
        self._reader = threading.Thread(target=lambda: self._said.extend(self.output), daemon=True)
        self._reader.start()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._let_in, daemon=True).start()
        try:
            self._await_ping()
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        return b"".join(self._said).decode(errors="replace")

    def _let_in(self) -> None:
        """Passes connections of this machine on to the container's port."""
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/ns/net") as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                return
        with contextlib.suppress(OSError):  # the door was closed
            while True:
                client, _ = self._door.accept()
                try:
                    inside = socket.create_connection(("127.0.0.1", PORT))
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=_relay, args=(client, inside), daemon=True).start()

    def _await_ping(self) -> None:
        until = time.monotonic() + READY_S
        while True:
            status = self._ping()
            if status == 200:
                return
            if self.poll() is not None or status == 500 or time.monotonic() > until:
                self._reader.join(0.5)
                said = [line for line in self.log.splitlines() if "GET /ping" not in line]  # of nginx, each time
                raise RuntimeError("\n".join([f"it answered {status} to /ping, and its log is:", *said]))
            time.sleep(0.2)

    def _ping(self) -> int:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # closing it would leave the thread in accept
        self._door.close()
        self.remove()
        self._reader.join(5)
        shutil.rmtree(self._folder, ignore_errors=True)


def _relay(client: socket.socket, inside: socket.socket) -> None:
    with client, inside:
        answers = threading.Thread(target=_pump, args=(inside, client), daemon=True)
        answers.start()
        _pump(client, inside)
        answers.join()


def _pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
