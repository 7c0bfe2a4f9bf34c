"""Take the pictures of pages that README and docs show.

    mafl attack sample_data/brain_t1.nii.gz --target sample_data/target_hole.nii.gz -o mafl-out
    mafl visualize mafl-out -o page.html
    mafl visualize mafl-out --reader-study study.html
    python tools/shoot_page.py page.html docs/page.png
    python tools/shoot_page.py study.html docs/study.png

A page of a reader study is shown at its first pair. Needs `pip install '.[browser]'` and a Chromium: Playwright's own,
or the one that $MAFL_CHROMIUM names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGE, STUDY = {"width": 1180, "height": 1275}, {"width": 900, "height": 700}


def main() -> None:
    page, picture = map(Path, sys.argv[1:])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("MAFL_CHROMIUM") or None, args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport=PAGE, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_load_state("networkidle")
        if tab.locator("#reader").count():
            tab.set_viewport_size(STUDY)
            tab.locator("#reader").fill("R1")
            tab.locator("#who button").click()
            tab.locator("#which", has_text="picture 2").wait_for()
        tab.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
