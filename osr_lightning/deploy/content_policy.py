"""What a page may do: a browser runs nothing but the one style and the one script that are in it."""

from __future__ import annotations

import base64
import hashlib
import re


def own_sources(text: str) -> list[str]:
    """The directives of a Content-Security-Policy that allow a page's own style and script, and nothing else.

    Args:
        text: of the page, with one ``<script>`` and one ``<style>`` without attributes.
    """
    return [
        "default-src 'none'",
        f"script-src {_hash(text, 'script')}",
        f"style-src {_hash(text, 'style')}",
    ]


def _hash(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
