"""Opens a report in Chromium and prints what is seen there as JSON: page.py CHROMIUM REPORT FOLDER."""

import json
import sys

from playwright.sync_api import sync_playwright

ARGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
COLUMN = "(at => [...document.querySelectorAll('#points ~ .scroll table tbody tr')].map(row => row.cells[at].textContent))"
HEADS = "[...document.querySelectorAll('#points ~ .scroll table th')].map(head => head.textContent)"
SORT = "[...document.querySelectorAll('#points ~ .scroll table th')].map(head => head.getAttribute('aria-sort'))"


def look(browser, report, folder, scheme, size):
    context = browser.new_context(color_scheme=scheme, viewport=size)
    page = context.new_page()
    console, requests, dialogs = [], [], []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"file://{report}")
    heads = page.evaluate(HEADS)
    at = heads.index("expanded top-1, %")
    button = page.locator("#points ~ .scroll table th button").nth(at)
    order = [page.evaluate(COLUMN, at)]
    sorts = []
    button.click()
    order.append(page.evaluate(COLUMN, at))
    sorts.append(page.evaluate(SORT)[at])
    # By keyboard, the other way round.
    button.focus()
    page.keyboard.press("Enter")
    order.append(page.evaluate(COLUMN, at))
    sorts.append(page.evaluate(SORT)[at])
    shot = f"{folder}/{scheme}-{size['width']}.png"
    page.screenshot(path=shot, full_page=True)
    seen = {
        "scheme": scheme,
        "width": size["width"],
        "console": console,
        "requests": requests,
        "dialogs": dialogs,
        "order": order,
        "sorts": sorts,
        "title": page.locator("h1").inner_text(),
        "scripts": page.evaluate("document.querySelectorAll('script').length"),
        "run": page.evaluate("typeof window.run"),
        "text": page.evaluate("document.body.innerText"),
        "figures": page.evaluate("document.querySelectorAll('figure svg').length"),
        "background": page.evaluate("getComputedStyle(document.body).backgroundColor"),
        "overflow": page.evaluate("document.documentElement.scrollWidth - window.innerWidth"),
        "covered": page.evaluate(COVERED),
        "screenshot": shot,
    }
    context.close()
    return seen


# Texts of one figure that overlap, which makes either hard to read.
COVERED = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent.trim(), text.getBoundingClientRect()]);
    boxes.forEach(([a, p], at) => boxes.slice(at + 1).forEach(([b, q]) => {
      const apart = p.right <= q.left + 1 || q.right <= p.left + 1 || p.bottom <= q.top + 3 || q.bottom <= p.top + 3;
      if (a && b && !apart) found.push(a + " | " + b);
    }));
    const frame = svg.getBoundingClientRect();
    boxes.forEach(([a, p]) => { if (p.left < frame.left - 1 || p.right > frame.right + 1) found.push("cut off: " + a); });
  }
  return found;
})()"""


def main():
    chromium, report, folder = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        wide, narrow = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
        seen = [look(browser, report, folder, scheme, wide) for scheme in ("light", "dark")]
        seen.append(look(browser, report, folder, "light", narrow))
        browser.close()
    print(json.dumps(seen))


main()
