"""Messages between two processes: length-prefixed JSON over pipes, with limits on size and time."""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

MAX_BYTES = 32 << 20  # one message; larger than any answer of the course


class Gone(BaseException):
    """The other process ended, overran its time or sent nonsense.

    Not an ``Exception``: a case that expects the answer to raise must not take this for it.
    """


class Malformed(Gone):
    """A message that is too large, not JSON, or not of the shapes described here."""


class Channel:
    """Messages over two pipe ends; every transfer respects ``deadline`` (``time.monotonic()``), None for no limit."""

    def __init__(self, read_fd: int, write_fd: int, max_bytes: int = MAX_BYTES):
        self.read_fd, self.write_fd, self.max_bytes = read_fd, write_fd, max_bytes
        self.deadline: float | None = None
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)  # a peer that does not read must not be able to stop us

    def _wait(self, fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if (left is not None and left <= 0) or not poll.poll(None if left is None else left * 1000):
            raise Gone("took too long")

    def send(self, message: Any) -> None:
        """Raises Gone when the other side has ended or does not read in time."""
        data = json.dumps(message).encode()
        view = memoryview(len(data).to_bytes(8, "big") + data)
        while view:
            self._wait(self.write_fd, select.POLLOUT)
            try:
                view = view[os.write(self.write_fd, view[: 1 << 16]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Gone("ended") from error

    def receive(self) -> Any:
        """Raises Gone when the other side has ended or says nothing in time, Malformed for a bad message."""
        size = int.from_bytes(self._read(8), "big")
        if size > self.max_bytes:
            raise Malformed(f"sent a message of {size} bytes (at most {self.max_bytes})")
        try:
            return json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Malformed("sent a message that is not JSON") from error

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self.read_fd, select.POLLIN)
            try:
                part = os.read(self.read_fd, min(size - len(data), 1 << 20))
            except BlockingIOError:
                continue
            if not part:
                raise Gone("ended")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read_fd)
        os.close(self.write_fd)
