"""What a service manager is told: that the stream has begun, and that it is alive. Without one, nothing happens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress


class ServiceNotice:
    """Tells systemd, over the socket that it gave this process.

    environment   with NOTIFY_SOCKET, and WATCHDOG_USEC where silence is to end the process
    clock         seconds that never go back
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._clock = clock
        period = environment.get("WATCHDOG_USEC", "")
        self._every = int(period) / 4e6 if period.isascii() and period.isdigit() and int(period) else 0.0
        self._last = -float("inf")

    def ready(self) -> None:
        """The model is loaded, and frames are coming."""
        self._send(b"READY=1")

    def alive(self) -> None:
        """Something was done, or is being waited for as it should be; sent four times in the time that is given."""
        if self._every and self._clock() - self._last >= self._every:
            self._last = self._clock()
            self._send(b"WATCHDOG=1")

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(message, address)
