"""The verify page in a real Chromium: keys, edit, undo, two reviewers, a reload in the middle, a phone's width.

Screenshots go to pytest's folder for the test; MINIGPT4_SCREENSHOTS names another one.
"""

import json
import socket
import subprocess
import sys

import pytest
from browsing import Person
from curation import make_store
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from minigpt4.curation.store import Store

pytestmark = pytest.mark.browser


class Reviewer(Person):
    """A person at the page."""

    def __init__(self, url, folder, width=1100, height=850):
        super().__init__(url, folder, width, height)
        self.until(lambda: self.text)

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    @property
    def text(self):
        """The description that is shown, from its picture's card; "" while there is none."""
        found = self.all("#card #diff")
        return found[0].text if found else ""

    @property
    def progress(self):
        return self.find("#progress").text

    def press(self, key):
        """A key on the page, then waits for another picture or message."""
        before = (self.text, self.progress)
        self.find("body").send_keys(key)
        self.until(lambda: (self.text, self.progress) != before)


@pytest.fixture
def page(tmp_path):
    """The address of a page over twelve pictures, served by the command itself; and the store's folder."""
    with make_store(tmp_path, 12, ("sample", "generate", "fix", "filter")) as store, store.transaction() as execute:
        execute(
            "UPDATE verdicts SET rule = 'short', detail = '3 words' WHERE picture IN (SELECT MAX(picture) FROM verdicts)"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "minigpt4", "curate", "verify", "--store", str(tmp_path / "store.sqlite")]
    command += ["--decisions", str(tmp_path / "decisions.jsonl"), "--port", str(port)]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = next(line for line in served.stdout if "http" in line)
    yield line.split()[1], tmp_path
    served.terminate()
    assert served.wait(30) == 143


@pytest.fixture
def person(page):
    """person(width): a reviewer at the page; all leave in the end."""
    people = []

    def arrive(**size):
        people.append(Reviewer(*page, **size))
        return people[-1]

    yield arrive
    for one in people:
        one.browser.quit()


def decisions(folder):
    with Store(folder / "store.sqlite") as store:
        return {
            row["picture"]: (row["decision"], row["text"]) for row in store.rows("SELECT * FROM decisions ORDER BY rowid")
        }


def test_people_verify_side_by_side(page, person):
    ann = person()
    assert "0 decided, 11 remaining" in ann.progress
    assert ann.find("#diff del").text == "blah blah" and ann.find("#card img").size["width"] > 20
    ann.shot("first")

    ann.press("a")  # on disk before the next picture shows
    [(accepted, _)] = decisions(page[1]).values()
    assert accepted == "accept" and "1 decided, 10 remaining" in ann.progress

    ann.find("body").send_keys("e")  # keys in the text are letters
    ann.until(lambda: ann.browser.switch_to.active_element.tag_name == "textarea")
    before = ann.text
    ann.browser.switch_to.active_element.send_keys(" And a rare sea bird." + Keys.CONTROL + Keys.ENTER)
    ann.until(lambda: ann.text != before)
    assert list(decisions(page[1]).values())[1] == ("edit", before.removesuffix(" blah blah") + " And a rare sea bird.")

    rejected = ann.text
    ann.press("r")
    assert [d for d, _ in decisions(page[1]).values()] == ["accept", "edit", "reject"]
    ann.press("u")
    assert ann.text == rejected and "Taken back." in ann.progress and len(decisions(page[1])) == 2

    bob = person()
    assert bob.text != ann.text and "2 decided, 9 remaining" in bob.progress
    bob.press("a")
    ann.browser.refresh()  # in the middle: the same picture, the same name
    ann.until(lambda: ann.text)
    assert ann.text == rejected and "3 decided" in ann.progress
    ann.press("u")
    assert "Taken back." in ann.progress and len(decisions(page[1])) == 2  # her own, not bob's
    while len(decisions(page[1])) < 11:
        for one in (ann, bob):
            if one.text:
                one.press("a")
    ann.until(lambda: "Nothing is left" in ann.find("#card").text)
    lines = [json.loads(line) for line in (page[1] / "decisions.jsonl").read_text().splitlines()]
    assert {line["picture"]: (line["decision"], line["text"]) for line in lines} == decisions(page[1])
    assert len({line["reviewer"] for line in lines}) == 2 and len(lines) == 11

    bob.find("#rule input").click()  # a rejected one may be looked at, and rescued
    bob.until(lambda: [o for o in bob.all("[role=option]") if "short" in o.text])[0].click()
    bob.until(lambda: "rejected by rule: short (3 words)" in bob.find("#card").text)
    bob.shot("rule")


def test_a_phone_shows_everything_in_its_width(page, person):
    phone = person(width=390, height=844)
    phone.shot("phone")
    wide, inner = phone.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner == 390
    for name in ("accept", "reject", "undo"):
        button = phone.find(f"#{name}")
        assert button.size["height"] >= 40 and button.location["x"] + button.size["width"] <= 390
    before = phone.text
    phone.find("#accept").click()
    phone.until(lambda: phone.text not in ("", before))
    next(tab for tab in phone.all("button[role=tab]") if tab.text == "All").click()
    words = phone.until(lambda: phone.find("#words input, #words textarea"))
    phone.until(words.is_displayed)
    words.send_keys("number 7,")
    phone.until(lambda: "number 7," in phone.find("#table").text and "number 8," not in phone.find("#table").text)
    phone.shot("phone-list")
