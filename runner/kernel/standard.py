"""A kernel as a process: started early, watched by the kernel of the operating system, ended for certain.

Replaces jupyter_client's KernelManager, whose start, shutdown and liveness polling wait in steps of
0.1 to 1 s. Talks over ipc sockets in a private folder; there is no port and nothing to encrypt.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from runner.kernel.process_tree import Process, descendants, kill, python

STDERR = "stderr"  # of the process, until its cells' streams are in place; then only a crash's trace
OWNER = "RUNNER_OWNER"
FOR_OURS = ("RUNNER_PATH", "RUNNER_PRELOAD", "RUNNER_PROJECT", "RUNNER_OPENED")  # see runner.kernel.standard_main
GRACE_S = 2.0  # between SIGINT, SIGTERM and SIGKILL


class Kernel(Protocol):
    """One running kernel, whatever makes it run."""

    kind: str  # "standard" or "forked"
    instead: str  # why it is the standard one where another was asked for
    refused: str  # why its notebook needs the standard one; said by a kernel that has executed nothing more since

    @property
    def returncode(self) -> int | None:
        """None while it runs."""

    async def died(self) -> int | None:
        """The exit code, once it has ended; negative for a signal, None where nobody can know."""

    def last_words(self) -> str:
        """What may explain its end."""

    def signal(self, number: int) -> None:
        """Send to the kernel and everything it started; nothing happens where all are gone."""

    def client(self) -> Any:
        """What nbclient talks to it with: jupyter_client's AsyncKernelClient, or the part of it that is needed."""

    def close(self) -> None:
        """Kill whatever is left of it. Calling twice is safe."""


async def end(kernel: Kernel, *, grace_s: float = GRACE_S) -> None:
    """SIGINT, SIGTERM, SIGKILL, with `grace_s` between them, until it is gone."""
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
            **{
                f"{channel}_port": number
                for number, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
            },
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
    def returncode(self) -> int | None:
        return self.process.poll()

    async def died(self) -> int:
        """The exit code, once there is one; negative for a signal."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        try:
            descriptor = os.pidfd_open(self.process.pid)
        except (AttributeError, OSError):  # not on macOS, not in every container, not where it has ended
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
        """The end of what the process wrote to its real stderr: why it did not start, or a crash's trace."""
        return (self.folder / STDERR).read_bytes()[-4000:].decode(errors="replace")

    def signal(self, number: int) -> None:
        """Send to the kernel and its group, SIGKILL to all that it started; nothing happens where all are gone."""
        # looked up before: what is in another session is nobody's once the kernel has ended
        self._family = descendants(self.process.pid) or self._family
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            kill(self._family)

    def client(self) -> Any:
        from jupyter_client.asynchronous.client import AsyncKernelClient  # 0.2 s
        from jupyter_client.channels import AsyncZMQSocketChannel

        class ShellChannel(AsyncZMQSocketChannel):
            def send(self, msg: dict[str, Any]) -> None:
                """jupyter_client's sends past the asynchronous socket, which then never learns that a reply has come
                in the meantime: who waits for it while a widget is answered waits for ever."""
                self.socket.send_multipart(self.session.serialize(msg))

        made = AsyncKernelClient(shell_channel_class=ShellChannel)
        made.load_connection_info(cast(Any, self.connection))
        made.allow_stdin = False
        return made

    def close(self) -> None:
        """Kill whatever is left of it and remove its sockets. Calling twice is safe."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def start_kernel(*, cwd: Path, environment: Mapping[str, str], language: str, kernel_name: str | None) -> KernelProcess:
    """A kernel for a notebook in `language`.

    Python always runs in this interpreter, whatever the notebook's kernelspec says: Studio writes names that exist
    nowhere else. Another language runs in the installed kernel of that name; PipelineError where there is none.
    """
    if language == "python":
        argv = [*python("runner.kernel.standard_main"), "-f", "{connection_file}"]
        return KernelProcess(argv, cwd=cwd, environment={**environment, OWNER: str(os.getpid())})
    kernel = kernel_for(language, kernel_name)
    given = {name: value for name, value in environment.items() if name not in FOR_OURS}
    return KernelProcess(kernel.argv, cwd=cwd, environment={**given, **kernel.environment})
