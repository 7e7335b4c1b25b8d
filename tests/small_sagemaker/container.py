"""A process that sees a container: its own root, /opt/ml, /tmp, processes and network.

Its root holds the system's programs and the image read-only and nothing else of this machine; its network is a loopback
device with one open port, where the services listen.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import NotPermittedError
from .images import Image
from .interpreter import BEGUN_WITH, may_fork

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x1 | 0x40
SYSTEM_FOLDERS = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
NUMBER = 1000  # of the user that is not root
# what an image with a user of its own has for it
ACCOUNT_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nsagemaker-user:x:1000:1000::/home/sagemaker-user:/bin/sh\n",
    "group": "root:x:0:\nsagemaker-user:x:1000:\n",
    "shadow": "root:*:19000:0:99999:7:::\nsagemaker-user:*:19000:0:99999:7:::\n",
    "sudoers": "root ALL=(ALL) ALL\nsagemaker-user ALL=(ALL) NOPASSWD: ALL\n",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PRIVATE = '"$MOUNT" --make-rprivate /\n'
# arguments: the root, how many folders to bind, the folders, the command
MOUNT = """
set -e
root=$1; count=$2; shift 2
while [ "$count" -gt 0 ]; do
    "$MOUNT" --bind "$1" "$root$1"; "$MOUNT" -o remount,bind,ro "$root$1"
    shift; count=$((count - 1))
done
for file in "$ACCOUNTS"/*; do
    if [ -e "$file" ]; then "$MOUNT" --bind "$file" "$root/etc/${file##*/}"; fi
done
"$MOUNT" --rbind /dev "$root/dev"; "$MOUNT" -t tmpfs tmpfs "$root/dev/shm"; "$MOUNT" -t proc proc "$root/proc"
"""
ENTER = """
unset MOUNT ACCOUNTS
exec "$CHROOT" "$root" /usr/bin/env -u PWD -u OLDPWD -u CHROOT "$@"
"""


class ForkedProcess:
    """As much of `subprocess.Popen` as a container needs, of a fork of the image's Python."""

    def __init__(self, image: Image, asked: Mapping[str, Any], network: int) -> None:
        read, write = os.pipe()
        self._told, told = os.pipe()
        self.stdout = open(read, "rb")  # noqa: SIM115
        socket.send_fds(start_interpreter(image.path), [json.dumps(asked).encode()], [network, write, told])
        for one in (write, told):
            os.close(one)
        self._lines = b""
        self._ended: int | None = None
        while b"\n" not in self._lines:
            self._hear()
        self.pid = int(self._lines.split()[0])

    def _hear(self) -> None:
        part = os.read(self._told, 100)
        assert part, "the forked Pythons' process has ended"
        self._lines += part

    def poll(self) -> int | None:
        while self._ended is None and select.select([self._told], [], [], 0)[0]:
            self._hear()
            if self._lines.count(b"\n") == 2:
                self._ended = int(self._lines.split()[1])
                os.close(self._told)
        return self._ended

    def wait(self) -> int:
        while (code := self.poll()) is None:
            select.select([self._told], [], [])
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@functools.cache
def start_interpreter(prefix: str) -> socket.socket:
    """Where forks of this environment's Python are asked for. One process, which ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        line = [f"{prefix}/bin/python3", str(Path(__file__).with_name("interpreter.py")), str(theirs.fileno())]
        env = {"PATH": f"{prefix}/bin:{SYSTEM_PATH}", "HOME": "/", **BEGUN_WITH}
        subprocess.Popen(line, cwd="/", env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    return ours


def forks(image: Image, command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the command is a Python that is there to be forked."""
    return image.warm and command[0] == "python3" and may_fork(environment)


def check_permitted(images: Iterable[Image]) -> None:
    """Raises NotPermittedError where this machine cannot give containers of these images what they need."""
    needed = ["unshare", "mount", "chroot", "setpriv"]
    if any(image.user == "sagemaker-user" for image in images):
        needed.append("sudo")
    tools = [name for name in needed if shutil.which(name, path=SYSTEM_PATH) is None]
    if sys.platform != "linux" or tools:
        raise NotPermittedError(f"containers need Linux with {', '.join(needed)}; missing: {', '.join(tools)}")
    if os.geteuid() != 0:
        raise NotPermittedError("containers need the right to mount and to make network namespaces; run as root")
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        env={"PATH": SYSTEM_PATH},
    )
    if tried.returncode:
        raise NotPermittedError(f"containers need the right to mount: {tried.stderr.strip()}")


class Container:
    """One container below `folder`. `start` is called once, from any thread; the listener is for the server."""

    def __init__(self, folder: Path, image: Image, *, network: int | None = None) -> None:
        """`network` is a descriptor of one that others are in too (machines.py)."""
        self.root = folder / "root"
        self.image, self.network = image, network
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None
        for name in ("dev", "proc", "tmp", "root", "run", "var/tmp", "opt/ml/config", "opt/ml/output"):
            (self.root / name).mkdir(parents=True)
        for name in ("tmp", "var/tmp"):
            (self.root / name).chmod(0o1777)
        self._accounts = folder / "accounts"
        self._accounts.mkdir()
        if image.user == "sagemaker-user":
            home = self.host(image.home)
            home.mkdir(parents=True)
            os.chown(home, NUMBER, NUMBER)
            for name, content in ACCOUNT_FILES.items():
                (self._accounts / name).write_text(content)
                (self._accounts / name).chmod(0o440 if name.startswith("s") else 0o644)

    def account_file(self, name: str, content: str) -> None:
        """Have the container see this as its file in /etc."""
        (self._accounts / name).write_text(content)

    def host(self, path: str) -> Path:
        """Where a path of the container lies on this machine."""
        return self.root / path.lstrip("/")

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, port: int) -> socket.socket:
        """Starts the command; what comes back accepts the container's connections to 127.0.0.1:`port`."""
        made: list[socket.socket] = []
        trouble: list[BaseException] = []

        def enter_and_start() -> None:  # a namespace is entered by a thread, and ends with it unless in use
            try:
                made.append(listen_in_new_network(port, self.network))
                self.process = self._spawn(command, environment)
            except BaseException as error:
                trouble.append(error)

        thread = threading.Thread(target=enter_and_start)
        thread.start()
        thread.join()
        if trouble:
            raise trouble[0]
        return made[0]

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes] | ForkedProcess:
        bound = self._prepare_root()
        unshare = shutil.which("unshare", path=SYSTEM_PATH) or "unshare"
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"]
        tools = {name.upper(): shutil.which(name, path=SYSTEM_PATH) or name for name in ("mount", "chroot")}
        if forks(self.image, command, environment):
            return self._fork(bound, tools["MOUNT"], command[1:], environment)
        setup = ["/bin/sh", "-c", MOUNT + ENTER, "setup", str(self.root), str(len(bound))]
        return subprocess.Popen(
            [unshare, *namespaces, *setup, *bound, *self._as_user(), *command],
            env={**environment, **tools, "ACCOUNTS": str(self._accounts)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _fork(
        self, bound: Sequence[str], mount: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> ForkedProcess:
        """As `_spawn`, of the image's Python, as a fork of one that was begun before (interpreter.py)."""
        asked = {
            "root": str(self.root),
            "mounts": ["/bin/sh", "-c", PRIVATE + MOUNT, "setup", str(self.root), str(len(bound)), *bound],
            "tools": {"MOUNT": mount, "ACCOUNTS": str(self._accounts)},
            "number": None if self.image.user == "root" else NUMBER,
            "privileged": self.image.user != "1000",
            "arguments": list(arguments),
            "environment": dict(environment),
        }
        with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as network:
            return ForkedProcess(self.image, asked, network.fileno())

    def _as_user(self) -> list[str]:
        if self.image.user == "root":
            return []
        setpriv = shutil.which("setpriv", path=SYSTEM_PATH) or "setpriv"
        kept = [] if self.image.user == "sagemaker-user" else ["--no-new-privs"]  # no program makes it root
        # another user is no longer killed with its parent, as unshare has asked for
        number = [f"--reuid={NUMBER}", f"--regid={NUMBER}", "--clear-groups", "--pdeathsig=KILL"]
        return [setpriv, *number, *kept, "--"]

    def _prepare_root(self) -> list[str]:
        """Makes the places for what is bound into the root, and names it."""
        bound = []
        for name in SYSTEM_FOLDERS:
            path = Path(name)
            if path.is_symlink():
                self.host(name).symlink_to(path.readlink())
            elif path.is_dir():
                bound.append(name)
        bound += [str(folder) for folder in self.image.folders()]
        for name in bound:
            self.host(name).mkdir(parents=True, exist_ok=True)
        return bound

    @property
    def output(self) -> IO[bytes]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout

    def poll(self) -> int | None:
        """The exit code as a shell tells it, None while it runs."""
        assert self.process is not None
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        """SIGTERM to the container's first process, and to no other: what a container runtime does."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            for number in children.read_text().split():
                os.kill(int(number), signal.SIGTERM)

    def kill(self) -> None:
        """Ends every process in the container."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    def remove(self) -> None:
        self.kill()
        if self.process is not None:
            self.process.wait()
            self.output.close()
        shutil.rmtree(self.root, ignore_errors=True)


def listen_in_new_network(port: int, network: int | None = None) -> socket.socket:
    """Moves this thread into a network of its own, or that of the descriptor, and listens there on 127.0.0.1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) if network is None else libc.setns(network, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise NotPermittedError(f"containers need the right to make network namespaces: {os.strerror(number)}")
    listener = socket.socket()
    fcntl.ioctl(listener, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener
