"""python docs/scripts/screenshots.py [web report terminal]: the screenshots of README and docs, in docs/images.

It needs Debian's chromium and chromium-driver. `web` serves the shipped model and asks it about a photograph; `report` opens
outputs/quickstart/report.html, which `make quickstart` writes; `terminal` shows what `minigpt4 chat` printed.
"""

import html
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from fragments import ROOT
from selenium import webdriver
from selenium.webdriver.common.by import By

from minigpt4.processing.data.photographs import photograph

IMAGES = ROOT / "docs/images"
DESKTOP, PHONE = (1100, 800), (390, 844)
REPORT = ROOT / "outputs/quickstart/report.html"
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #1e2430; color: #e6e9ef; font: 15px/1.5 ui-monospace, monospace; padding: 16px }}
pre {{ margin: 0; white-space: pre-wrap }} b {{ color: #8fd18f }}
</style><pre>{}</pre>"""


def browser(size, dark=False):
    """Headless Chromium of a size in CSS pixels, as a phone below 500 of them."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    return opened


def web():
    """The page with an answer, at desktop width and light, and at phone width and dark; its examples likewise."""
    from minigpt4 import load
    from minigpt4.hub.app import build, serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build(*load("embedded", device="auto"), "embedded")
    threading.Thread(target=serve, args=(page,), kwargs={"server_port": port}, daemon=True).start()
    _until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "coffee.jpg"
        photograph("coffee").save(photo)
        _ask(port, photo, DESKTOP, False, "web")
        _ask(port, photo, PHONE, True, "web-phone-dark")


def _ask(port, photo, size, dark, name):
    """Opens the page, keeps its examples as NAME-examples.png, asks about a photograph, and keeps NAME.png."""
    opened = browser(size, dark)
    try:
        opened.get(f"http://127.0.0.1:{port}")

        def all_of(selector):
            return opened.find_elements(By.CSS_SELECTOR, selector)

        _until(lambda: len(all_of("#chat .example")) > 0)
        time.sleep(1)  # the examples' images
        opened.save_screenshot(str(IMAGES / f"{name}-examples.png"))
        all_of("#question input[type=file]")[0].send_keys(str(photo))
        _until(lambda: all_of("#question .thumbnail-item"))
        all_of("#question textarea")[0].send_keys("What is in this image?")
        all_of("#question .submit-button")[0].click()
        _until(lambda: all_of("#chat .bot.message") and all_of("#question .submit-button"))
        time.sleep(1)
        opened.save_screenshot(str(IMAGES / f"{name}.png"))
    finally:
        opened.quit()


def report():
    """The top of the quickstart's report; nothing where there is none."""
    if not REPORT.is_file():
        print(f"no {REPORT.relative_to(ROOT)}: run `make quickstart` first", file=sys.stderr)
        return
    _keep(REPORT.as_uri(), DESKTOP, "report")


def terminal():
    """`minigpt4 chat` with one question after the other, as it prints them."""
    asked = ["What is in this image?", "Describe this image in one short sentence."]
    with tempfile.TemporaryDirectory() as folder:
        photograph("cat").save(Path(folder) / "cat.jpg")
        command = [sys.executable, "-m", "minigpt4", "chat", "--image", "cat.jpg"]
        told = subprocess.run(
            command, cwd=folder, input="\n".join([*asked, "", ""]), capture_output=True, text=True, check=True
        ).stdout
        lines = ["<b>$ minigpt4 chat --image cat.jpg</b>"]
        for question, answer in zip(asked, told.splitlines(), strict=False):
            lines += [f"<b>&gt; {html.escape(question)}</b>", html.escape(answer)]
        page = Path(folder) / "terminal.html"
        page.write_text(TERMINAL.format("\n".join(lines)), "utf-8")
        _keep(page.as_uri(), (760, 40 + 24 * len(lines)), "terminal")


def _keep(address, size, name):
    opened = browser(size)
    try:
        opened.get(address)
        opened.save_screenshot(str(IMAGES / f"{name}.png"))
    finally:
        opened.quit()


def _until(condition, seconds=120):
    last = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > last:
            raise TimeoutError(f"not ready after {seconds} s")
        time.sleep(0.1)


if __name__ == "__main__":
    KINDS = {"web": web, "report": report, "terminal": terminal}
    chosen = sys.argv[1:] or list(KINDS)
    if unknown := sorted({*chosen} - {*KINDS}):
        sys.exit(f"{unknown[0]}: expected any of {', '.join(KINDS)}")
    for kind in chosen:
        KINDS[kind]()
