"""The containers of a job on several machines: each in a network of its own, with a cable between all of them.

They know each other as algo-1, algo-2 and so on, by /etc/hosts; nothing that one has on its loopback device is seen by
another. What the service does with the others when one fails is not documented: here they are killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from .container import CLONE_NEWNET, SYSTEM_PATH, Container
from .errors import NotPermittedError
from .images import Image

# in the network of the first machine, which has the switch: $1 its number, then a path of each other network
CABLES = """
set -e
ip link add switch type bridge; ip addr add 10.11.0.1/24 dev switch; ip link set switch up
number=1
for network in "$@"; do
    number=$((number + 1))
    ip link add "port$number" type veth peer name eth0 netns "$network"
    ip link set "port$number" master switch up
    nsenter --net="$network" sh -c "ip addr add 10.11.0.$number/24 dev eth0; ip link set eth0 up"
done
"""


def host_name(number: int) -> str:
    """The name of a machine, from 1."""
    return f"algo-{number}"


class Machines:
    """All containers of one job, as one: it has ended when all of them have; a code that is not 0 ends the others."""

    def __init__(self, folder: Path, image: Image, count: int) -> None:
        self.failed = 0  # the first code that was another
        self.networks = [new_network() for _ in range(count)] if count > 1 else []
        self.hosts = [host_name(number + 1) for number in range(count)]
        known = "".join(f"10.11.0.{number + 1} {host}\n" for number, host in enumerate(self.hosts))
        if count == 1:
            self.containers = [Container(folder, image)]
            return
        plug(self.networks)
        self.containers = []
        for host, network in zip(self.hosts, self.networks, strict=True):
            (folder / host).mkdir()
            container = Container(folder / host, image, network=network)
            container.account_file("hosts", f"127.0.0.1 localhost\n{known}")
            self.containers.append(container)

    def poll(self) -> int | None:
        """The first code that is not 0, or 0; None while one of them runs."""
        codes = [container.poll() for container in self.containers]
        self.failed = self.failed or next((code for code in codes if code), 0)
        if self.failed:
            self.kill()
        return None if None in codes else self.failed

    def terminate(self) -> None:
        for container in self.containers:
            container.terminate()

    def kill(self) -> None:
        for container in self.containers:
            container.kill()

    def host(self, path: str) -> Path:
        """Where a path lies on this machine: of the first container that has such a file."""
        paths = [container.host(path) for container in self.containers]
        return next((one for one in paths if one.exists()), paths[0])

    def remove(self) -> None:
        for container in self.containers:
            container.remove()
        for network in self.networks:
            os.close(network)


def new_network() -> int:
    """A descriptor of a network that has a loopback device, which is down, and nothing else."""
    made: list[int] = []

    def enter() -> None:
        if not ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            made.append(os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if not made:
        raise NotPermittedError("containers need the right to make network namespaces")
    return made[0]


def plug(networks: Sequence[int]) -> None:
    """Connect the networks. Raises NotPermittedError where this machine has no `ip`, or no bridge and veth devices."""
    ip = shutil.which("ip", path=SYSTEM_PATH)
    if ip is None:
        raise NotPermittedError("jobs on several machines need `ip` (iproute2)")
    first, *others = (f"/proc/self/fd/{network}" for network in networks)
    done = subprocess.run(
        ["nsenter", f"--net={first}", "sh", "-c", CABLES, "cables", *others],
        pass_fds=networks,
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NotPermittedError(f"jobs on several machines need bridge and veth devices: {done.stderr.strip()}")
