"""uvicorn, but patient only so long, and ending with 0 where it was asked to end, all answered."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from contextlib import suppress
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from osr_lightning.deploy.serve.connections import Connections

HEADER_SECONDS = 10.0
LAST_SECONDS = 1.0  # in which a request arrives that was on its way when the server was asked to end
_LATE = f"no whole request arrived within {HEADER_SECONDS:g} seconds: send it faster, or connect again"


class PatientProtocol(H11Protocol):
    """Closes a connection on which no request begins within ``HEADER_SECONDS``, whatever trickles in.

    uvicorn itself waits forever for the rest of a header, and for the rest of a body that was refused; it
    closes connections whose client has said all, before the answer, and those without a request when it ends.
    """

    _timer: asyncio.TimerHandle | None = None
    _begun = False  # something of the next request is there
    _said_all = False  # the client sends no more, but may read

    @property
    def _connections(self) -> Connections:
        connections: Connections = self.app_state["connections"]
        return connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._restart()
        self._connections.made(self, self.client[0] if self.client else "")

    def data_received(self, data: bytes) -> None:
        """Stop it where these bytes complete a header."""
        self._begun = True
        super().data_received(data)
        if self._answering():
            self._stop()
            self.cycle.keep_alive &= not self._connections.ending

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep a connection open for its answer."""
        self._said_all = True
        return self._answering() and not self.cycle.more_body

    def on_response_complete(self) -> None:
        """Start it again; the next request may be there already."""
        super().on_response_complete()
        if self._answering():
            return
        if self._said_all:
            self.transport.close()
        else:
            self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop it for good."""
        self._stop()
        self._connections.lost(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End after the request that is being answered, or that may be on its way."""
        if self._answering():
            self.cycle.keep_alive = False
        else:
            self._restart()

    @property
    def waiting(self) -> bool:
        """Whether nothing is being answered."""
        return not self._answering()

    def make_room(self) -> None:
        """Close at once."""
        self.transport.abort()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _restart(self) -> None:
        self._stop()
        self._begun = False
        seconds = LAST_SECONDS if self._connections.ending else HEADER_SECONDS
        self._timer = self.loop.call_later(seconds, self._late)

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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End once all is answered that was asked of connections the machine has accepted."""
        self.lifespan.state["connections"].ending = True
        accepted = []
        for listener in sockets or []:
            with suppress(BlockingIOError):
                while True:
                    accepted.append(listener.accept()[0])
        for server in self.servers:
            server.close()  # at once: between the two nobody else can connect
        for connection in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: PatientProtocol(self.config, self.server_state, self.lifespan.state), connection
            )
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish what was begun; a second Ctrl-C ends at once."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
