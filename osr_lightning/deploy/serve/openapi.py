"""``/openapi.json``: what the server takes and gives, for programs that write clients."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from osr_lightning.deploy.serve.limits import Limits
from osr_lightning.recogniser.rows import P_VALUE

if TYPE_CHECKING:
    from osr_lightning.deploy.serve.backend import Backend

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": ["number", "null"]}
_TYPES: dict[str, Schema] = {
    "index": {"type": "integer", "description": "place in the request, from 0 on"},
    "file": {"type": ["string", "null"], "description": "the client's name of the file"},
    "source": {"type": "string", "description": "the form's field, or body"},
    "label": {"type": "null", "description": "is not known here"},
    "prediction": {"type": ["string", "null"], "description": "a class, or unknown"},
    "confidence": _NUMBER | {"description": "probability of the likeliest class"},
    "score": _NUMBER | {"description": "higher means more unknown"},
    "threshold": _NUMBER | {"description": "an image is unknown where its score is greater"},
    P_VALUE: _NUMBER
    | {"description": "share of known images that look as unknown; null where none were calibrated on"},
    "error": {"type": "string", "description": "why the image could not be read; empty if it was"},
}


_MAP: Schema = {
    "name": "map",
    "in": "query",
    "description": "whether to tell where the unusual is, which takes several times as long",
    "schema": {"type": "boolean", "default": False},
}


def document(backend: Backend, limits: Limits) -> Schema:
    """The OpenAPI document."""
    row = _object({name: _TYPES.get(name, _NUMBER) for name in backend.columns})
    share = _object({"class": _TEXT, "probability": {"type": "number"}})
    number: Schema = {"type": "number"}
    part = _object(
        {
            "name": _TEXT,
            "says": _TEXT,
            "statistic": _NUMBER,
            "p": _NUMBER | {"description": "share of known images whose statistic is as large"},
            "references": {"type": "integer"},
            "weight": number,
            "contribution": _NUMBER | {"description": "to the score, which is the sum"},
        }
    )
    near = _object({"class": _TEXT, "distance": number, "picture": _TEXT})
    places: dict[str, Schema] = {
        "x": number | {"description": "where it is greatest, from the left, in shares of the side"},
        "y": number | {"description": "and from above"},
        "places": {"type": "integer", "description": "along an edge of what the network last sees"},
        "values": _list(_list(number)) | {"description": "in standard deviations over the image"},
        "picture": _TEXT | {"description": "to be drawn over the image, a PNG as data: URL"},
    }
    why = {
        "resembles": _TEXT,
        "parts": _list(part),
        "nearest": _list(near),
        "no_nearest": {"type": ["string", "null"]},
        "map": {"anyOf": [_object(places), {"type": "null"}]},
        "no_map": {"type": ["string", "null"], "description": "why there is no map"},
    }
    explanation = {
        "row": {"$ref": "#/components/schemas/Row"},
        "probabilities": _list(share),
        "samples": {"anyOf": [_list(share), {"type": "null"}]},
        "pixels": {"type": "string", "description": "what the network saw, a PNG as data: URL"},
        "why": {"anyOf": [_object(why), {"type": "null"}], "description": "null of an exported graph"},
    }
    rows = {"rows": _list({"$ref": "#/components/schemas/Row"})}
    sizes = f"at most {limits.body_bytes / 2**20:g} MiB"
    return {
        "openapi": "3.1.0",
        "info": {"title": "osr serve", "version": version("osr_lightning")},
        "paths": {
            "/predict": _post(f"A row for each of up to {limits.images} images, {sizes}", rows, many=True),
            "/explain": _post(f"One image's row and what stands behind it, {sizes}", explanation, many=False)
            | {"parameters": [_MAP]},
            "/model": _get("Classes, pictures of some, size, score and threshold", "application/json"),
            "/healthz": _get("Whether the server answers", "application/json"),
            "/metrics": _get("For Prometheus", "text/plain"),
        },
        "components": {"schemas": {"Row": row, "Error": _object({"error": _TEXT})}},
    }


def _post(summary: str, properties: dict[str, Schema], *, many: bool) -> Schema:
    file: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {"type": "object", "additionalProperties": {"anyOf": [file, _list(file)]} if many else file}
    failures = {
        "400": "no image, or no readable form",
        "408": "the body took too long",
        "413": "the body is too large",
        "422": "none of the images could be read",
        "503": "the server is busy",
    }
    error = _content("application/json", {"$ref": "#/components/schemas/Error"})
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": file},
                    "multipart/form-data": {"schema": form},
                },
            },
            "responses": {
                "200": {"description": "answered"} | _content("application/json", _object(properties)),
                **{status: {"description": text} | error for status, text in failures.items()},
            },
        }
    }


def _get(summary: str, media_type: str) -> Schema:
    answer = {"description": "answered"} | _content(media_type, {})
    return {"get": {"summary": summary, "responses": {"200": answer}}}


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _content(media_type: str, schema: Schema) -> Schema:
    return {"content": {media_type: {"schema": schema}}}
