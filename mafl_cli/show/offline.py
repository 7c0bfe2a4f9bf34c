"""HTML files that stand alone: style, script and data in one file, and a policy that forbids the browser to fetch."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mafl_cli.names import one_line
from mafl_cli.system.records import plain

_FILES = Path(__file__).parent


def document(name: str, title: str, parts: Mapping[str, str], data: Mapping[str, str]) -> str:
    """`NAME.html` with `NAME.css`, `NAME.js` and the rest put into its places `{{...}}`, ASCII only.

    Args:
        title: any text; a place of its own.
        parts: ASCII markup of our own, by place.
        data: JSON as `as_json` gives it, by the id of its element.
    """
    template, style, script = (
        (_FILES / f"{name}.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    places = {
        **parts,
        "title": html.escape(one_line(title)).encode("ascii", "xmlcharrefreplace").decode("ascii"),
        # Hashes rather than 'unsafe-inline': should anything else ever get into the page, it will not run.
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": "\n".join(
            f'<script type="application/json" id="{each}">{text}</script>' for each, text in data.items()
        ),
    }
    # In one pass: what is put in is not searched for places to put something in.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: places[place[1]], template)


def as_json(value: Any) -> str:
    """Strict JSON in ASCII that no HTML parser can take for markup, whatever stands in its strings."""
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
