"""The page, and a policy that lets the browser run nothing but what is in it."""

from __future__ import annotations

from pathlib import Path

from osr_lightning.deploy.content_policy import own_sources
from osr_lightning.deploy.page.text import page_text


def load() -> tuple[str, int, dict[str, str]]:
    """The page, its status, and its headers."""
    text = page_text([Path(__file__).with_name("ask.js")])
    policy = [
        *own_sources(text),
        "img-src data: blob:",
        "connect-src 'self'",
        *(f"{directive} 'none'" for directive in ("base-uri", "form-action", "frame-ancestors")),
    ]
    return text, 200, {"Content-Security-Policy": "; ".join(policy), "X-Content-Type-Options": "nosniff"}
