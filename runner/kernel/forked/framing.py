"""Frames over a stream socket: how the runner and a forked kernel talk. Standard library only.

A frame is the length of its payload (4 bytes), what it is (1 byte), and the payload: JSON for all kinds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from enum import IntEnum

HEAD = struct.Struct("!IB")
CHUNK_BYTES = 1 << 18


class Kind(IntEnum):
    SETUP = 1  # runner to kernel, first: environment and working folder
    REQUEST = 2  # runner to kernel: a Jupyter request
    REPLY = 3  # kernel to runner: what Jupyter sends on its shell channel
    PUBLISHED = 4  # kernel to runner: what Jupyter sends on its iopub channel
    REFUSED = 5  # kernel to runner: the notebook needs the standard kernel, and why; nothing more is executed
    LEFT = 6  # kernel to runner: told to shut down, its exit handlers have run


def frame(kind: Kind, payload: bytes) -> bytes:
    return HEAD.pack(len(payload), kind) + payload


class Frames:
    """Puts frames together from the pieces in which a socket hands them out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that `data` completes."""
        self._held += data
        at = 0
        while len(self._held) - at >= HEAD.size:
            size, kind = HEAD.unpack_from(self._held, at)
            end = at + HEAD.size + size
            if len(self._held) < end:
                break
            yield Kind(kind), bytes(self._held[at + HEAD.size : end])
            at = end
        del self._held[:at]


def receive(line: socket.socket) -> tuple[Kind, bytes] | None:
    """Wait for one frame; None where the other side is gone."""
    head = _exactly(line, HEAD.size)
    if head is None:
        return None
    size, kind = HEAD.unpack(head)
    payload = _exactly(line, size)
    return None if payload is None else (Kind(kind), payload)


def _exactly(line: socket.socket, size: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < size:
        piece = line.recv(size - len(pieces))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)
