"""``osr serve``: its options, and the server's life."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from osr_lightning.cli.arguments import (
    CommandParser,
    add_checkpoint,
    add_decision,
    add_machine,
    add_trust,
    parse,
)
from osr_lightning.cli.checkpoint_path import existing, telling_calibrated
from osr_lightning.errors import UserError, check_range, one_line

_DRAIN_SECONDS = 30
_LAST_SECONDS = 2  # that a thread has for what it is at, once all is answered or given up


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = CommandParser(
        "osr serve",
        description="Answer POST /predict with the rows of `osr predict` and POST /explain with why, with a "
        "page to try it at GET /.",
        epilog="SIGTERM and Ctrl-C end it after the requests that it has begun, with exit status 0.",
    )
    add_checkpoint(parser, "the checkpoint to ask, or an .onnx file of osr export")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 for any (default: %(default)s)")
    parser.add_argument(
        "--allowed_hosts",
        nargs="+",
        metavar="NAME",
        help="by which it may be asked, as their Host says, beside localhost (default: localhost alone where "
        "only this machine is served, else any)",
    )
    add_decision(parser)
    parser.add_argument(
        "--max_body", type=float, default=16, metavar="MIB", help="of a request (default: 16)"
    )
    parser.add_argument("--max_images", type=int, default=256, help="in a request (default: %(default)s)")
    parser.add_argument(
        "--queue", type=int, default=1024, help="images on their way; beyond that: 503 (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=128, help="images classified at once, at most (default: %(default)s)"
    )
    parser.add_argument(
        "--wait_ms",
        type=float,
        default=2,
        help="an image waits so long for others on their way (default: %(default)s)",
    )
    add_machine(parser, "threads that decode images")
    add_trust(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Serve until asked to end.

    Raises:
        UserError: for a mistake in the options, a missing library, or an address that cannot be had.
    """
    options = parse(build_parser(), arguments)
    if options.ckpt_path is None:
        raise UserError("serve needs a trained checkpoint: add --ckpt_path RUN/checkpoints/best.ckpt")
    require = partial(check_range, "--", vars(options))
    for name in ("max_body", "max_images", "queue", "batch", "workers"):
        require(name, lambda value: value > 0, "be above 0")
    require("wait_ms", lambda value: 0 <= value <= 10_000, "lie between 0 and 10000")
    require("port", lambda value: 0 <= value < 2**16, f"lie between 0 and {2**16 - 1}")
    if options.queue < options.max_images:
        raise UserError(
            f"--queue {options.queue} has no room for a request of --max_images {options.max_images}"
        )
    allowed = None if options.allowed_hosts is None else set(map(_host_name, options.allowed_hosts))
    try:
        import prometheus_client
        import python_multipart  # noqa: F401
        import uvicorn

        from osr_lightning.deploy.serve.app import build_app
        from osr_lightning.deploy.serve.protocol import PatientProtocol, Server
    except ModuleNotFoundError as error:
        raise UserError(
            f"serve needs the extra 'serve' ({error.name} is missing): pip install 'osr_lightning[serve]'"
        ) from error
    from osr_lightning.deploy.load import load
    from osr_lightning.deploy.serve.limits import Limits
    from osr_lightning.deploy.serve.open import open_backend

    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its clients are told
    with _listen(options.host, options.port) as listener:  # before the checkpoint takes its seconds
        path = existing(options.ckpt_path)
        recogniser = load(path, trust=options.trust_checkpoint, device=options.device)
        with telling_calibrated(path, "osr serve --ckpt_path", options.score):
            recogniser.decide_by(options.score, options.threshold)
        try:
            backend = open_backend(recogniser)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        body = int(options.max_body * 2**20)
        limits = Limits(
            body_bytes=body,
            held_bytes=8 * body,
            images=options.max_images,
            queue=options.queue,
            batch=options.batch,
            wait_seconds=options.wait_ms / 1000,
        )
        config = uvicorn.Config(
            build_app(backend, limits, options.workers, _hosts(allowed, listener)),
            http=PatientProtocol,
            ws="none",
            log_level=logging.WARNING,
            access_log=False,  # /metrics counts requests
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        told = one_line(f"{options.ckpt_path} on {address} ({backend.spec}); Ctrl-C ends it")
        print(told, file=sys.stderr, flush=True)
        Server(config).run([listener])
        _end_threads()
        print("ended", file=sys.stderr)


def _host_name(given: str) -> str:
    """A name or an address as a Host header has it, in lower case.

    Raises:
        UserError: for what no Host is: an address of the web, a port, a pattern.
    """
    if (name := _as_host(given)) is not None:
        return name
    meant = None
    with suppress(ValueError):  # as of brackets that are not closed
        meant = urlsplit(given if "//" in given else f"//{given}").hostname
    way_out = (
        "leave it out where any name will do" if _as_host(meant or "") is None else f"did you mean {meant}?"
    )
    raise UserError(f"--allowed_hosts {given!r}: a host is a name without http://, port and path; {way_out}")


def _as_host(given: str) -> str | None:
    with suppress(ValueError):
        return str(ipaddress.ip_address(given.removeprefix("[").removesuffix("]")))
    with suppress(ValueError):
        name = given.rstrip(".").encode("idna").decode().lower()  # as browsers write names beyond ASCII
        return name if re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) else None
    return None


def _hosts(allowed: set[str] | None, listener: socket.socket) -> set[str] | None:
    """The names by which the server may be asked; any if None.

    A page of another name, which its owner has lead to this machine, could otherwise read what is served to
    this machine alone.
    """
    if allowed is not None:
        return allowed
    return set() if ipaddress.ip_address(listener.getsockname()[0]).is_loopback else None


def _end_threads() -> None:
    """End this process soon, even where a thread never comes to its end: Python would wait for it."""
    end = time.monotonic() + _LAST_SECONDS
    others = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    for thread in others:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        timer = threading.Timer(_LAST_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: where that cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # its connections inherit this: without it each answer's body waits 40 ms for an acknowledgement
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, ValueError) as error:  # ValueError of a name that no host has
        raise UserError(
            f"cannot listen on --host {host} --port {port} ({_reason(error)}): choose another, or --port 0 "
            "for any"
        ) from error


def _reason(error: OSError | ValueError) -> str:
    """Without the address, which socket.create_server adds to it; getaddrinfo's numbers are below 0."""
    if isinstance(error, ValueError):
        return "it is no name of a host"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error.strerror)
