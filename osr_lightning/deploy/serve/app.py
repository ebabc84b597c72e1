"""The application: its routes, and the way of an image from a request's body to its row."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from osr_lightning.deploy.serve import page, responses
from osr_lightning.deploy.serve.batching import Batcher, Full
from osr_lightning.deploy.serve.limits import BUSY, Guard, Limits
from osr_lightning.deploy.serve.metrics import Metrics
from osr_lightning.deploy.serve.openapi import document
from osr_lightning.recogniser.rows import COLUMNS, Row, error_cells, path_cell

if TYPE_CHECKING:
    from osr_lightning.deploy.serve.backend import Backend

_NO_IMAGE = "the request has no image: send a file's bytes as the body, or files as multipart/form-data"
_PREDICTION, _ERROR = COLUMNS.index("prediction"), COLUMNS.index("error")
PATHS = ["/", "/predict", "/explain", "/model", "/healthz", "/metrics", "/openapi.json"]


class Upload(NamedTuple):
    """A file in a request: its bytes, the client's name for it, and the field it came in."""

    data: bytes
    name: str
    source: str


def build_app(backend: Backend, limits: Limits | None = None, workers: int = 2) -> Starlette:
    """The application.

    Args:
        backend: what to ask.
        limits: the bounds; their defaults if not given.
        workers: threads that decode images.
    """
    limits = limits or Limits()
    metrics = Metrics(PATHS, backend.rejected_known)
    batcher = Batcher(
        backend.rows,
        most=limits.batch,
        patience=limits.wait_seconds,
        room=limits.queue,
        seen=metrics.batch,
    )
    decoders = ThreadPoolExecutor(workers, "decoder")

    async def row(index: int, upload: Upload) -> Row:
        loop, name = asyncio.get_running_loop(), upload.name or f"{index} of the request"
        pixels = await loop.run_in_executor(decoders, backend.read, upload.data, name)
        if isinstance(pixels, str):
            answer = error_cells(pixels, len(backend.columns) - len(COLUMNS))
        else:
            answer = await batcher.row(pixels)
        return index, path_cell(upload.name) if upload.name else "", upload.source, "", *answer

    async def predict(request: Request) -> Response:
        uploads = await _uploads(request, limits.images)
        with batcher.admit(len(uploads)):
            rows = await asyncio.gather(*(row(index, upload) for index, upload in enumerate(uploads)))
        for one in rows:
            metrics.predicted(one[_PREDICTION])
        return _answer({"rows": [responses.row_json(one, backend.columns) for one in rows]}, rows)

    async def explain(request: Request) -> Response:
        uploads = await _uploads(request, limits.images)
        if len(uploads) > 1:
            raise HTTPException(400, f"/explain takes one image, not {len(uploads)}: ask for each by itself")
        with batcher.admit(1):
            one = await row(0, uploads[0])
            content: dict[str, Any] = {"row": responses.row_json(one, backend.columns)}
            if not one[_ERROR]:
                pixels = backend.read(uploads[0].data, "")
                assert not isinstance(pixels, str)  # it was read a moment ago
                explanation = await batcher.call(backend.explain, pixels[None])
                content |= responses.explained(explanation, pixels, backend.spec)
        return _answer(content, [one])

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        try:
            yield
        finally:
            task.cancel()
            batcher.close()
            decoders.shutdown()

    model = responses.model(backend, limits)
    fixed = {"/model": model, "/healthz": {"status": "ok"}, "/openapi.json": document(backend, limits)}
    routes = [
        Route("/", _constant(HTMLResponse(*page.load()))),
        Route("/predict", predict, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
        Route("/metrics", lambda request: Response(metrics.text(batcher.held), media_type=_PROMETHEUS)),
        *(Route(path, _constant(JSONResponse(content))) for path, content in fixed.items()),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, limits=limits, answered=metrics.answered)],
        exception_handlers={
            HTTPException: _refuse,
            Full: _busy,
            ClientDisconnect: lambda request, error: Response(status_code=400),  # nobody reads it
            Exception: _failed,
        },
    )


_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def _uploads(request: Request, most: int) -> list[Upload]:
    """The request's images, at least one.

    Raises:
        HTTPException: where there is none, there are too many, or the form is none.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        body = await request.body()
        if not body:
            raise HTTPException(400, _NO_IMAGE)
        return [Upload(body, "", "body")]
    try:
        form = await request.form(max_files=most, max_fields=1)
    except (FormParserError, HTTPException) as error:
        why, status = (error.detail, error.status_code) if isinstance(error, HTTPException) else (error, 400)
        if status != 400:  # a limit's own sentence
            raise
        raise HTTPException(
            400,
            f"the form cannot be read ({str(why).rstrip('.')}): send up to {most} files with an HTTP library "
            "or curl -F",
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
