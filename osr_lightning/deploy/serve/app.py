"""The application: its routes, and the way of an image from a request's body to its row."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from osr_lightning.deploy.content_policy import own_sources
from osr_lightning.deploy.page.text import page_text
from osr_lightning.deploy.serve import responses
from osr_lightning.deploy.serve.batching import Batcher, Full
from osr_lightning.deploy.serve.connections import Connections
from osr_lightning.deploy.serve.limits import ALIVE, BUSY, Guard, Limits
from osr_lightning.deploy.serve.metrics import Metrics
from osr_lightning.deploy.serve.openapi import document
from osr_lightning.recogniser.rows import COLUMNS, Row, error_cells, path_cell

if TYPE_CHECKING:
    from osr_lightning.deploy.serve.backend import Backend, Pixels

_NO_IMAGE = "the request has no image: send a file's bytes as the body, or files as multipart/form-data"
_PREDICTION, _ERROR = COLUMNS.index("prediction"), COLUMNS.index("error")
PATHS = ["/", "/predict", "/explain", "/model", ALIVE, "/metrics", "/openapi.json"]


class Upload(NamedTuple):
    """A file in a request: its bytes, the client's name for it, and the field it came in."""

    data: bytes
    name: str
    source: str


def build_app(
    backend: Backend,
    limits: Limits | None = None,
    workers: int = 2,
    hosts: Collection[str] | None = None,
) -> Starlette:
    """The application.

    Args:
        backend: what to ask.
        limits: the bounds; their defaults if not given.
        workers: threads that decode images.
        hosts: see `osr_lightning.deploy.serve.limits.Guard`.
    """
    limits = limits or Limits()
    metrics = Metrics(PATHS, backend.rejected_known)
    connections = Connections()
    connections.turned_away = metrics.turned_away
    batcher = Batcher(
        backend.rows,
        most=limits.batch,
        patience=limits.wait_seconds,
        room=limits.queue,
        seen=metrics.batch,
    )
    decoders = ThreadPoolExecutor(workers, "decoder")

    async def decode(index: int, upload: Upload) -> Pixels | str:
        loop, name = asyncio.get_running_loop(), upload.name or f"{index} of the request"
        return await loop.run_in_executor(decoders, backend.read, upload.data, name)

    async def row(index: int, upload: Upload, pixels: Pixels | str) -> Row:
        if isinstance(pixels, str):
            answer = error_cells(pixels, backend.columns)
        else:
            answer = await batcher.row(pixels)
        return index, path_cell(upload.name) if upload.name else "", upload.source, "", *answer

    async def decoded_row(index: int, upload: Upload) -> Row:
        return await row(index, upload, await decode(index, upload))

    async def predict(request: Request) -> Response:
        _refuse_other_words(request)
        uploads = await _uploads(request, limits.images)
        with batcher.admit(len(uploads)):
            rows = await asyncio.gather(*(decoded_row(index, upload) for index, upload in enumerate(uploads)))
        for one in rows:
            metrics.predicted(one[_PREDICTION])
        return _answer({"rows": [responses.row_json(one, backend.columns) for one in rows]}, rows)

    async def explain(request: Request) -> Response:
        _refuse_other_words(request, "map")
        with_map = _flag(request, "map")
        uploads = await _uploads(request, limits.images)
        if len(uploads) > 1:
            raise HTTPException(400, f"/explain takes one image, not {len(uploads)}: ask for each by itself")
        with batcher.admit(1):
            pixels = await decode(0, uploads[0])
            one = await row(0, uploads[0], pixels)
            content: dict[str, Any] = {"row": responses.row_json(one, backend.columns)}
            if not isinstance(pixels, str):
                explanation = await batcher.call(backend.explain, pixels[None], with_map)
                content |= responses.explained(explanation, pixels, backend.spec)
        return _answer(content, [one])

    async def report(request: Request) -> Response:
        return Response(metrics.text(batcher.held, len(connections)), media_type=_PROMETHEUS)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        task = asyncio.create_task(batcher.run())
        try:
            yield {"connections": connections}
        finally:
            task.cancel()
            batcher.close()
            decoders.shutdown(wait=False, cancel_futures=True)  # a decoder may never come to its end

    model = responses.model(backend, limits)
    fixed = {"/model": model, ALIVE: {"status": "ok"}, "/openapi.json": document(backend, limits)}
    routes = [
        Route("/", _constant(_page())),
        Route("/predict", predict, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
        Route("/metrics", report),
        *(Route(path, _constant(JSONResponse(content))) for path, content in fixed.items()),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Guard, limits=limits, answered=metrics.answered, connections=connections, hosts=hosts)
        ],
        exception_handlers={
            HTTPException: _refuse,
            Full: _busy,
            ClientDisconnect: lambda request, error: Response(status_code=400),  # nobody reads it
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False  # to an address that the client's own words would make
    return app


_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class _Form(MultiPartParser):
    """A form that has an end; without it, its last file may have been cut off."""

    _whole = False

    def on_end(self) -> None:
        """The last boundary is there."""
        self._whole = True

    async def parse(self) -> FormData:
        """All of it.

        Raises:
            MultiPartException: where it is none.
        """
        self.stream = self._to_the_end(self.stream)
        return await super().parse()

    async def _to_the_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._whole:
            raise MultiPartException("it ends before its last boundary")


def _refuse_other_words(request: Request, *names: str) -> None:
    for word in request.query_params:
        if word not in names:
            taken = " and ".join(f"?{name}=" for name in names) or "nothing"
            raise HTTPException(
                400,
                f"?{_clean(word)}= in the address is not known: {request.url.path} takes {taken} there; "
                "score and threshold are options of osr serve",
            )


def _flag(request: Request, name: str) -> bool:
    """Whether a word of the query is true; it is false where it is not there."""
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise HTTPException(400, f"?{name}= in the address takes true or false")
    return value == "true"


async def _uploads(request: Request, most: int) -> list[Upload]:
    """The request's images, at least one.

    Raises:
        HTTPException: where there is none, there are too many, or the form is none.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise HTTPException(
            415,
            f"the body's Content-Encoding {_clean(encoding)} is not taken: images are compressed already",
        )
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        body = await request.body()
        if not body:
            raise HTTPException(400, _NO_IMAGE)
        return [Upload(body, "", "body")]
    try:
        form = await _Form(request.headers, request.stream(), max_files=most, max_fields=1).parse()
    except (FormParserError, MultiPartException) as error:
        raise HTTPException(
            400,
            f"the form cannot be read ({str(error).rstrip('.')}): send up to {most} files with an HTTP "
            "library or curl -F",
        ) from error
    uploads = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise HTTPException(
                    400, f"the field {_clean(field)!r} is text, not a file: send images as files"
                )
            uploads.append(Upload(await value.read(), _clean(value.filename or ""), _clean(field)))
    finally:
        await form.close()
    if not uploads:
        raise HTTPException(400, _NO_IMAGE)
    return uploads


def _clean(name: str) -> str:
    """A client's name for something, as text that UTF-8 can hold."""
    return name.encode("utf-8", "backslashreplace").decode()[:1000]


def _answer(content: dict[str, Any], rows: list[Row]) -> Response:
    if all(row[_ERROR] for row in rows):
        return JSONResponse(content | {"error": rows[0][_ERROR]}, 422)
    return JSONResponse(content)


def _page() -> HTMLResponse:
    """The page, and a policy that lets the browser run nothing but what is in it."""
    text = page_text([Path(__file__).with_name("ask.js")])
    policy = [
        *own_sources(text),
        "img-src data: blob:",
        "connect-src 'self'",
        *(f"{directive} 'none'" for directive in ("base-uri", "form-action", "frame-ancestors")),
    ]
    headers = {"Content-Security-Policy": "; ".join(policy), "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(text, headers=headers)


def _constant(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return response

    return answer


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is no {request.url.path}; there are: {', '.join(PATHS)}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another")
        detail = f"{request.url.path} does not answer {request.method}: use {allowed}"
    return JSONResponse({"error": detail}, error.status_code, error.headers)


async def _busy(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": BUSY}, 503, {"Retry-After": "1"})


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed at this request; its log says why"}, 500)
