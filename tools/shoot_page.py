"""Take the picture of a page that README and docs show.

    mafl attack sample_data/brain_t1.nii.gz --target sample_data/target_hole.nii.gz -o mafl-out
    mafl visualize mafl-out -o page.html
    python tools/shoot_page.py page.html docs/page.png

Needs `pip install '.[browser]'` and a Chromium: Playwright's own, or the one that $MAFL_CHROMIUM names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    page, picture = map(Path, sys.argv[1:])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("MAFL_CHROMIUM") or None, args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1180, "height": 1275}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_load_state("networkidle")
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
