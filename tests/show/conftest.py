"""A real browser for the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Skipped without playwright (the extra `browser`) or a Chromium: `playwright install chromium`, one on the path,
    or the file named in $MAFL_CHROMIUM."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    stated = os.environ.get("MAFL_CHROMIUM")
    path = stated or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        except sync_api.Error as exc:
            if stated:
                raise
            pytest.skip(f"no Chromium here: {str(exc).splitlines()[0]}")
        yield found
        found.close()
