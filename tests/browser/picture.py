"""The picture of the README: a report's first part in light and its plots in dark colours, beside each other. picture.py CHROMIUM
REPORT OUT."""

import base64
import sys

from playwright.sync_api import sync_playwright

ARGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update".split()
# Of a page, and of its half of the picture.
PAGE = {"width": 1000, "height": 1225}
HALF = {"width": 740, "height": 906}


def half(browser, report, scheme, section):
    """What a reader sees of the report behind a jump to that section."""
    page = browser.new_context(color_scheme=scheme, viewport=PAGE).new_page()
    page.goto(f"file://{report}")
    page.evaluate("section => document.querySelector(section).scrollIntoView({behavior: 'instant'})", section)
    shot = base64.b64encode(page.screenshot()).decode()
    return f'<img src="data:image/png;base64,{shot}" width="{HALF["width"]}">'


def main():
    chromium, report, out = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        halves = half(browser, report, "light", "body") + half(browser, report, "dark", "#plots-0")
        page = browser.new_page(viewport={"width": 2 * HALF["width"] + 20, "height": HALF["height"]})
        page.set_content(f'<body style="margin:0;display:flex;gap:20px;background:#8a8fa0">{halves}</body>')
        page.screenshot(path=out)


if __name__ == "__main__":
    main()
