"""A person with their own real Chromium, for the tests of pages."""

import os
import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
_BEING_REDRAWN = ("stale element", "no such element", "not interactable")


class Person:
    """Opens a page; below a width of 500 pixels, on a phone.

    Args:
        url: the page's address.
        folder: for downloads and screenshots, unless MINIGPT4_SCREENSHOTS names another one for these.
        width, height: of the window, in pixels.
        dark: whether pages should be dark.
        arguments: more of Chromium's command line.
    """

    def __init__(self, url, folder, width=1280, height=900, dark=False, arguments=()):
        self.folder = folder
        options = webdriver.ChromeOptions()
        size = f"--window-size={width},{height}"
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", size, *arguments):
            options.add_argument(argument)
        options.binary_location = CHROMIUM
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        if width < 500:  # a window cannot be that narrow, a phone can
            size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        if dark:
            feature = {"name": "prefers-color-scheme", "value": "dark"}
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.browser.get(url)

    def all(self, selector):
        """The elements that a CSS selector finds."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition, seconds=60):
        """Waits for a condition, and returns what it gave."""
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            try:
                if found := condition():
                    return found
            except Exception as error:
                if not any(words in str(error) for words in _BEING_REDRAWN):
                    raise
            time.sleep(0.05)
        raise AssertionError(f"not in {seconds} s; see {self.shot('failed')}")

    def shot(self, name):
        """Saves what is shown as NAME.png; returns the file."""
        file = Path(os.environ.get("MINIGPT4_SCREENSHOTS", self.folder)) / f"{name}.png"
        self.browser.save_screenshot(str(file))
        return file
