"""uvicorn, but patient only so long, and ending with 0 where it was asked to end."""

from __future__ import annotations

import asyncio
import json
import signal
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
_LATE = f"no whole request arrived within {HEADER_SECONDS:g} seconds: send it faster, or connect again"


class PatientProtocol(H11Protocol):
    """Closes a connection on which no request begins within ``HEADER_SECONDS``, whatever trickles in.

    uvicorn itself waits forever for the rest of a header, and for the rest of a body that was refused.
    """

    _timer: asyncio.TimerHandle | None = None
    _begun = False  # something of the next request is there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._restart()

    def data_received(self, data: bytes) -> None:
        """Stop it where these bytes complete a header."""
        self._begun = True
        super().data_received(data)
        if self._answering():
            self._stop()

    def on_response_complete(self) -> None:
        """Start it again; the next request may be there already."""
        super().on_response_complete()
        if not self._answering():
            self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop it for good."""
        self._stop()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _restart(self) -> None:
        self._stop()
        self._begun = False
        self._timer = self.loop.call_later(HEADER_SECONDS, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self._begun and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            body = json.dumps({"error": _LATE}).encode()
            headers = [("content-type", "application/json"), ("connection", "close")]
            for event in (h11.Response(status_code=408, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        else:
            self.transport.abort()  # closing would wait until the client has read what is left


class Server(uvicorn.Server):
    """A server for which SIGTERM and SIGINT are requests to end, not failures."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish what was begun; a second Ctrl-C ends at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
