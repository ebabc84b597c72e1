"""What a client may ask of the server: by which name, bytes, seconds; a sentence where it asks too much."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from osr_lightning.deploy.serve.connections import Connections

ALIVE = "/healthz"  # is answered however many are connected
BUSY = "the server has all it can do: try again in a second"


class Limits(NamedTuple):
    """The server's bounds.

    Attributes:
        body_bytes: of one request.
        held_bytes: of all requests' bodies that are being read or answered.
        body_seconds: in which a request's body must arrive.
        images: in one request.
        queue: images of all requests that may be on their way.
        batch: images that are classified at once.
        wait_seconds: that an image waits for others to be classified with.
    """

    body_bytes: int = 16 * 2**20
    held_bytes: int = 128 * 2**20
    body_seconds: float = 30.0
    images: int = 256
    queue: int = 1024
    batch: int = 128
    wait_seconds: float = 0.002


class Guard:
    """ASGI middleware that counts bytes and seconds of requests' bodies, and tells of every request.

    Args:
        app: the application.
        limits: the bounds.
        answered: is told the path, the status and the seconds of every request.
        connections: who is connected.
        hosts: the names and addresses by which the server may be asked, beside those of this machine alone;
            any if not given.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        answered: Callable[[str, int, float], None],
        connections: Connections,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.answered = answered
        self.connections = connections
        self.hosts = hosts
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see https://asgi.readthedocs.io."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status, taken = time.perf_counter(), 500, 0

        async def receive_some() -> Message:
            nonlocal taken
            # before the body comes, as curl and browsers ask first whether to send much
            if _announced(scope) > self.limits.body_bytes:
                raise self._too_large()
            left = begin + self.limits.body_seconds - time.perf_counter()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError as error:
                raise HTTPException(
                    408,
                    f"the body did not arrive within {self.limits.body_seconds:g} seconds: send it faster",
                ) from error
            size = len(message.get("body", b""))
            taken += size
            self.held += size
            if taken > self.limits.body_bytes:
                raise self._too_large()
            if self.held > self.limits.held_bytes:
                raise HTTPException(503, BUSY, {"Retry-After": "1"})
            return message

        async def send_some(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.connections.ending:  # else the client would ask again on a connection that closes
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            if (refusal := self._refusal(scope)) is not None:
                await refusal(scope, receive, send_some)
            else:
                await self.app(scope, receive_some, send_some)
        finally:
            self.held -= taken
            self.answered(scope["path"], status, time.perf_counter() - begin)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """What a request gets before it is looked at any further."""
        headers = dict(scope["headers"])
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # a proxy before this server may take the body's end for that of another request
            return _last("the request has both Content-Length and Transfer-Encoding: send one of them", 400)
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and host and not _is_host(host, self.hosts):
            # a page of that name could read the answers
            text = (
                f"this server is not {host[:100]}: ask for localhost, or start it with --allowed_hosts NAME"
            )
            return _last(text, 421)
        client = scope.get("client")
        if client and scope["path"] != ALIVE and self.connections.crowded(client[0]):
            self.connections.turned_away("refused")
            return _last("too many are connected: try again in a second", 503, {"Retry-After": "1"})
        return None

    def _too_large(self) -> HTTPException:
        most = self.limits.body_bytes / 2**20
        return HTTPException(413, f"the body has more than {most:g} MiB: send fewer or smaller images")


def _last(error: str, status: int, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer after which the connection is closed."""
    return JSONResponse({"error": error}, status, {"Connection": "close", **(headers or {})})


def _is_host(given: str, allowed: Collection[str]) -> bool:
    """Whether a Host header names this machine alone, or one that is allowed; its port does not matter."""
    name = given[1:].partition("]")[0] if given.startswith("[") else given.rpartition(":")[0] or given
    name = name.rstrip(".").lower()
    if name == "localhost" or name in allowed:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _announced(scope: Scope) -> int:
    """The body's length as the client gives it; 0 if it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
