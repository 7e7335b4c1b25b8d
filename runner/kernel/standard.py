"""A kernel as a process: started early, watched through the operating system, ended reliably.

Replaces jupyter_client's KernelManager, whose start, shutdown and liveness polling wait in steps of 0.1 to 1 s. It is
reached by ipc sockets in a private folder; there is no port and nothing to encrypt.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from runner.kernel.kernelspec import kernel_for
from runner.kernel.process_tree import Process, descendants, kill, python, signal_group

STDERR = "stderr"  # of the process until its cells' streams replace it; later only a crash's trace
OWNER = "RUNNER_OWNER"
FOR_OURS = ("RUNNER_PATH", "RUNNER_PRELOAD", "RUNNER_PROJECT", "RUNNER_OPENED")  # see runner.kernel.standard_main
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
GRACE_S = 2.0  # between SIGINT, SIGTERM and SIGKILL


class Kernel(Protocol):
    """One running kernel of either kind."""

    kind: str  # "standard" or "forked"
    instead: str  # why it is the standard one although another was requested; ""
    refused: str  # why its notebook needs the standard one; the kernel then executes nothing more; ""

    @property
    def pid(self) -> int | None:
        """None until it is known."""

    @property
    def returncode(self) -> int | None:
        """None while it runs."""

    async def died(self) -> int | None:
        """The exit code, once it has ended; negative for a signal, None if it is not known."""

    def last_words(self) -> str:
        """The end of its stderr or of a crash's trace."""

    def signal(self, number: int) -> None:
        """Send to the kernel and everything it started, if they still run."""

    def client(self) -> Any:
        """jupyter_client's AsyncKernelClient, or the part of it that nbclient needs."""

    def close(self) -> None:
        """Kill the kernel and everything it started. Idempotent."""


async def end(kernel: Kernel, *, grace_s: float = GRACE_S) -> None:
    """Send SIGINT, SIGTERM, SIGKILL, with `grace_s` between them, until it has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        kernel.signal(number)
        try:
            await asyncio.wait_for(kernel.died(), grace_s)
            break
        except TimeoutError:
            continue
    kernel.close()


class KernelProcess:
    """A process of its own. `connection` is what a jupyter_client needs to talk to it."""

    kind = "standard"
    instead = ""
    refused = ""

    def __init__(self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> None:
        """Start it; returns at once. `{connection_file}` in `argv` is replaced."""
        self._family: list[Process] = []
        # unix socket paths hold 107 bytes, so not below the run's folder
        self.folder = Path(tempfile.mkdtemp(prefix="rk-"))
        self.connection: dict[str, Any] = {
            "transport": "ipc",
            "ip": str(self.folder / "s"),
            **{f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)},
            "key": uuid.uuid4().hex,
            "signature_scheme": "hmac-sha256",
        }
        file = self.folder / "connection.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(self.connection))
        try:
            with (self.folder / STDERR).open("wb") as stderr:
                self.process = subprocess.Popen(
                    [part.replace("{connection_file}", str(file)) for part in argv],
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    async def died(self) -> int:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        try:
            descriptor = os.pidfd_open(self.process.pid)
        except (AttributeError, OSError):  # on macOS, in some containers, and if it has ended
            while self.process.poll() is None:
                await asyncio.sleep(0.05)
            return self.process.wait()
        loop.add_reader(descriptor, _settle, ended)
        try:
            await ended
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self.process.wait()

    def last_words(self) -> str:
        return (self.folder / STDERR).read_bytes()[-4000:].decode(errors="replace")

    def signal(self, number: int) -> None:
        # looked up before: once the kernel has ended, processes in other sessions have another parent
        self._family = descendants(self.process.pid) or self._family
        signal_group(self.process.pid, number)
        if number == signal.SIGKILL:
            kill(self._family)

    def client(self) -> Any:
        from jupyter_client.asynchronous.client import AsyncKernelClient  # 0.2 s
        from jupyter_client.channels import AsyncZMQSocketChannel

        class ShellChannel(AsyncZMQSocketChannel):
            def send(self, msg: dict[str, Any]) -> None:
                """jupyter_client's bypasses the asynchronous socket, which then does not notice a reply that has come
                in the meantime, so that waiting for it while a widget is answered never ends."""
                self.socket.send_multipart(self.session.serialize(msg))

        client = AsyncKernelClient(shell_channel_class=ShellChannel)
        client.load_connection_info(cast(Any, self.connection))
        client.allow_stdin = False
        return client

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def start_kernel(*, cwd: Path, environment: Mapping[str, str], language: str, kernel_name: str | None) -> KernelProcess:
    """A kernel for a notebook in `language`.

    Python always runs in this interpreter, whatever the notebook's kernelspec says: Studio writes names that exist
    nowhere else. Another language runs in the installed kernel of that name. Raises PipelineError if there is none.
    """
    if language == "python":
        argv = [*python("runner.kernel.standard_main"), "-f", "{connection_file}"]
        return KernelProcess(argv, cwd=cwd, environment={**environment, OWNER: str(os.getpid())})
    kernel = kernel_for(language, kernel_name)
    general = {name: value for name, value in environment.items() if name not in FOR_OURS}
    return KernelProcess(kernel.argv, cwd=cwd, environment={**general, **kernel.environment})
