"""The page: one file, and a policy that lets the browser run nothing but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path


def load() -> tuple[str, int, dict[str, str]]:
    """The page, its status, and its headers."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {_hash(text, 'script')}",
        f"style-src {_hash(text, 'style')}",
        "img-src data: blob:",
        "connect-src 'self'",
        *(f"{directive} 'none'" for directive in ("base-uri", "form-action", "frame-ancestors")),
    ]
    return text, 200, {"Content-Security-Policy": "; ".join(policy), "X-Content-Type-Options": "nosniff"}


def _hash(text: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
