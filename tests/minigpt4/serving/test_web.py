"""`minigpt4 web` in a real Chromium: upload, ask, stream, stop, several people, hostile answers, a phone's width.

Screenshots go to pytest's folder for the test; MINIGPT4_SCREENSHOTS names another one.
"""

import argparse
import gc
import json
import socket
import threading
import time
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")
from browsing import Person  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from torch.nn.modules.module import register_module_forward_pre_hook  # noqa: E402

from minigpt4 import MiniGPT4ForConditionalGeneration  # noqa: E402
from minigpt4.cli import main, web  # noqa: E402
from minigpt4.hub import app  # noqa: E402
from minigpt4.hub.export import export  # noqa: E402
from minigpt4.modeling_minigpt4.chat import ChatSession  # noqa: E402

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # shows a green field


class Visitor(Person):
    """A person at the page."""

    def __init__(self, url, folder, **looks):
        super().__init__(url, folder, arguments=CAMERA, **looks)
        self.until(lambda: len(self.all("#chat .example")) == len(app.EXAMPLES))

    @property
    def answers(self):
        return [" ".join(answer.text.split()) for answer in self.all("#chat .bot.message")]

    @property
    def idle(self):
        """Whether a question can be sent."""
        return self.all("#question .submit-button") and self.all("#question textarea")[0].is_enabled()

    def set(self, label, value):
        """A decoding setting."""
        if not any(field.is_displayed() for field in self.all("#settings input")):
            self.until(lambda: self.all("#settings button"))[0].click()
        fields = "#settings input[type=number]"
        field = self.until(lambda: [f for f in self.all(fields) if label in f.accessible_name and f.is_displayed()])[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def attach(self, *files):
        self.all("#question input[type=file]")[0].send_keys("\n".join(map(str, files)))

    def send(self, text, *files):
        """Sends a question, with pictures."""
        self.type(text, *files)
        self.all("#question .submit-button")[0].click()

    def type(self, text, *files):
        """Writes a question and attaches pictures to it."""
        self.until(lambda: self.idle)
        if files:
            self.attach(*files)
            self.until(lambda: len(self.all("#question .thumbnail-item")) == len(files))
        self.all("#question textarea")[0].send_keys(text)

    def ask(self, text, *files):
        """Sends a question and waits for the whole answer."""
        before = len(self.all("#chat .bot.message"))  # their texts may be about to be redrawn
        self.send(text, *files)
        self.until(lambda: len(self.answers) > before and self.idle)
        return self.until(lambda: self.answers)[-1]

    def press(self, name, where="#chat"):
        """The last button of a name."""
        self.until(lambda: self.all(f"{where} button[aria-label='{name}']"))[-1].click()

    def save(self):
        """The conversation as the page's button downloads it: [(role, number of pictures, text)]."""
        path = self.folder / "conversation.json"
        path.unlink(missing_ok=True)
        self.all("#save")[0].click()
        self.until(path.exists)
        return [
            (message["role"], sum(part["type"] == "image" for part in message["content"]), message["content"][-1]["text"])
            for message in json.loads(path.read_text())
        ]

    def toast(self):
        """The text of a message that comes up."""
        return self.until(lambda: " ".join(toast.text for toast in self.all(".toast-body")))

    @property
    def width(self):
        return self.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def visit(free_port, tmp_path):
    """visit(serve, width=...): a person at the page that serve(port) serves; all leave in the end."""
    visitors = []

    def arrive(serve, **size):
        if not visitors:
            threading.Thread(target=serve, args=(free_port,), daemon=True).start()
            last = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", free_port)) and time.monotonic() < last:
                time.sleep(0.05)
        folder = tmp_path / f"visitor-{len(visitors)}"
        folder.mkdir()
        visitors.append(Visitor(f"http://127.0.0.1:{free_port}", folder, **size))
        return visitors[-1]

    yield arrive
    for visitor in visitors:
        visitor.browser.quit()
    gr.close_all()


@pytest.fixture
def serve(original, processor, tmp_path):
    """serve(port): `minigpt4 web` with the tiny model, which here runs until it is stopped."""
    ends = [processor.tokenizer.eos_token_id, *(token for end in processor.turn_ends for token in end)]
    original.generation_config.suppress_tokens = sorted(set(ends))
    folder = str(export(original, processor, tmp_path / "tiny"))
    return lambda port: web.run(argparse.Namespace(model=folder, host="127.0.0.1", port=port, mcp=False))


@pytest.fixture
def slowly():
    """Until `remove()`, models write at most 20 tokens a second, as large ones do: time to stop them."""
    hook = register_module_forward_pre_hook(
        lambda module, _: time.sleep(0.05) if isinstance(module, MiniGPT4ForConditionalGeneration) else None
    )
    yield hook
    hook.remove()


def questions(conversation):
    return [text for role, _, text in conversation if role == "user"]


@pytest.mark.browser
def test_a_conversation_is_that_of_python(serve, visit, original, processor, photo, picture, tmp_path):
    picture(1).save(tmp_path / "second.png")
    ann = visit(serve)
    ann.shot("examples")
    ann.set("Longest answer", 8)
    ann.ask("What is this?", photo, tmp_path / "second.png")
    ann.ask("Why?")
    expected = original.chat_session(processor, max_new_tokens=8, do_sample=False)
    expected.ask("What is this?", [photo, str(tmp_path / "second.png")])
    expected.ask("Why?")
    said = [(m["role"], len(m["content"]) - 1, m["content"][-1]["text"]) for m in expected.messages]
    assert ann.save() == said
    ann.shot("conversation")

    ann.press("Retry")
    ann.until(lambda: len(ann.answers) == 2 and ann.idle)
    assert ann.save() == said
    ann.press("Undo")
    ann.until(lambda: len(ann.answers) == 1 and ann.idle)
    ann.all("#question textarea")[0].send_keys(Keys.CONTROL, "a", Keys.DELETE)
    ann.ask("And now?")
    assert questions(ann.save()) == ["What is this?", "And now?"]
    assert not [line for line in ann.browser.get_log("browser") if "Content Security" in line["message"]]


@pytest.mark.browser
def test_people_side_by_side(serve, visit, slowly, original, processor, photo, tmp_path):
    ann, bob = visit(serve), visit(serve, width=390, height=844)
    ann.set("Longest answer", 8)
    ann.type("Why?")
    bob.set("Longest answer", 400)
    bob.send("Tell a long story.", photo)
    bob.until(lambda: bob.answers and bob.answers[-1])
    ann.all("#question .submit-button")[0].click()  # and waits
    bob.until(lambda: bob.all("#question .stop-button"))[0].click()
    bob.until(lambda: bob.idle)
    ann.until(lambda: ann.answers and ann.idle)
    [asked, (_, _, stopped)] = bob.save()
    assert asked == ("user", 1, "Tell a long story.") and questions(ann.save()) == ["Why?"]
    slowly.remove()
    whole = original.chat_session(processor, do_sample=False).ask(asked[2], photo, max_new_tokens=400)
    assert whole.startswith(stopped) and 0 < len(stopped) < len(whole)
    bob.set("Longest answer", 8)
    bob.ask("Go on.")
    assert [text for *_, text in bob.save()][:3] == ["Tell a long story.", stopped, "Go on."]
    bob.shot("phone")
    assert bob.width == [390, 390]

    # A file over the limit is refused in words, and so is what is not an image; the page stays usable.
    (tmp_path / "big.png").write_bytes(bytes(21_000_000))
    bob.attach(tmp_path / "big.png")
    assert "size" in bob.toast()
    bob.shot("too-big")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    ann.send("And this?", tmp_path / "broken.png")
    ann.until(lambda: "broken.png: not a picture" in ann.answers[-1] and ann.idle)
    assert "/gradio/" not in ann.answers[-1]
    ann.shot("broken")
    ann.ask("Still there?")
    assert questions(ann.save()) == ["Why?", "Still there?"]

    # Whoever leaves takes the conversation along, even in the middle of an answer.
    bob.browser.get(bob.browser.current_url)
    bob.until(lambda: bob.idle)
    bob.send("Tell a long story.", photo)
    bob.until(lambda: bob.answers and bob.answers[-1])
    bob.browser.get("about:blank")
    ann.until(lambda: sum(isinstance(o, ChatSession) for o in gc.get_objects()) == 1)


class Parrot:
    """A model, and a conversation with it, that answers with the question: the worst that a model can be made to say."""

    generation_config = argparse.Namespace(
        do_sample=False, temperature=None, top_p=None, max_new_tokens=None, num_beams=None, repetition_penalty=None
    )

    pictures = []  # the number of pictures in each question

    def __init__(self):
        self.messages, self.dropped = [], []

    def num_parameters(self):
        return 10**6

    def cancel(self):
        pass

    def ask(self, text, images, stream, **generation):
        self.pictures.append(len(images))
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        yield from text.splitlines(keepends=True)


@pytest.fixture
def parrots(monkeypatch):
    """Each page talks to a `Parrot`."""
    monkeypatch.setattr(app, "ChatSession", lambda model, processor: Parrot())


@pytest.mark.browser
def test_what_a_model_writes_is_not_trusted(visit, free_port, parrots):
    def serve(port):
        app.serve(app.build(Parrot(), None, "parrot"), server_port=port)

    eve = visit(serve, width=390, height=844, dark=True)
    eve.until(lambda: eve.all("#chat .example")[0].rect["y"] > eve.all("#chat")[0].rect["y"])  # not scrolled out of sight
    eve.shot("examples-phone-dark")
    asked = f"<img src=x onerror=hacked=1><h1>Big</h1> ![spy](http://127.0.0.1:{free_port}/spy) `a<b>` **bold**"
    assert eve.ask(asked) == asked.replace("**", "").replace("`", "")
    assert not eve.all("#chat .bot img, #chat .bot h1") and eve.all("#chat .bot strong")[0].text == "bold"
    website = "<h1>Jokes</h1><script>parent.hacked = 1</script><img src=/spy><p onclick=hacked=1 style='color: red'>Why?</p>"
    field = eve.all("#question textarea")[0]
    for line in ("Here:", "```html", website):
        field.send_keys(line, Keys.SHIFT, Keys.ENTER)
    eve.send("```")
    frame = eve.until(lambda: eve.all("#chat iframe.website"))[0]
    eve.until(lambda: eve.idle)
    assert frame.get_attribute("sandbox") == ""
    eve.shot("website")
    assert eve.width == [390, 390]
    eve.browser.switch_to.frame(frame)
    assert eve.all("h1")[0].text == "Jokes" and not eve.all("img")[0].get_property("naturalWidth")
    eve.browser.switch_to.default_content()
    assert eve.browser.execute_script("return window.hacked") is None
    eve.press("Retry")  # an answer with a preview is one answer
    eve.until(lambda: eve.all("#chat iframe.website") and eve.idle)
    eve.ask("Bye")


@pytest.mark.browser
def test_the_camera_and_the_clipboard_give_pictures(visit, parrots):
    ann = visit(lambda port: app.serve(app.build(Parrot(), None, "parrot"), server_port=port), width=390, height=844)
    ann.until(lambda: ann.all("#photograph"))[0].click()
    ann.until(lambda: [button for button in ann.all("#camera button") if "Webcam" in button.text])[0].click()
    ann.until(lambda: ann.all("#camera video") and ann.all("#camera video")[0].get_property("videoWidth"))
    ann.shot("camera")
    ann.press("capture photo", "#camera")
    ann.until(lambda: len(ann.all("#question .thumbnail-item")) == 1 and not ann.all("#camera video"))
    ann.browser.execute_script(
        """const canvas = document.createElement("canvas");
        canvas.toBlob((blob) => {
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([blob], "pasted.png", {type: "image/png"}));
          const paste = new ClipboardEvent("paste", {clipboardData, bubbles: true});
          document.querySelector("#question textarea").dispatchEvent(paste);
        });"""
    )
    ann.until(lambda: len(ann.all("#question .thumbnail-item")) == 2)
    ann.ask("What are these?")
    assert Parrot.pictures[-1] == 2 and ann.width == [390, 390]


def test_answers_become_markdown_without_html():
    fence = "Look:\n```html\n<b>x</b>\n```\n"
    assert app.shown(fence + "<b> and `<i>`, ![a](b)") == fence + "&lt;b> and `<i>`, !\\[a](b)"
    assert app.shown("Sure! <!DOCTYPE html><p>x</p>") == "Sure! \n```html\n<!DOCTYPE html><p>x</p>\n```\n"
    assert 'srcdoc="' in app.preview("x") and '"><script>' not in app.preview('"><script>')


def test_every_ability_ships_with_a_picture():
    assert len(app.ABILITIES) == 12
    sizes = {path.stem: path.stat().st_size for path in app._FOLDER.iterdir() if path.suffix != ".json"}
    assert set(sizes) == {Path(file).stem for file, _, _ in app.EXAMPLES} and max(sizes.values()) < 15_000


def test_the_page_says_what_a_small_model_cannot_do():
    small, large = app._description("<embedded>", 140e6), app._description("minigpt4-7b", 7.8e9)
    assert "<b>&lt;embedded&gt;</b>, 140 million parameters" in small and "7.8 billion" in large
    assert "try the first three examples" in small and "examples" not in large
    assert [question for _, _, question in app.EXAMPLES[:3]][-1] == "Describe this image in detail."


def test_taking_back_counts_turns_that_the_model_forgot(original, processor, picture):
    chat = original.chat_session(processor, max_new_tokens=2)
    for question in "abc":
        chat.ask(question, picture() if question == "a" else None)
    chat.dropped, chat.messages = chat.messages[:2], chat.messages[2:]
    assert app.rewind(chat, 2) == 2 and (len(chat.dropped), len(chat.messages)) == (2, 2)
    assert app.rewind(chat, 5) == 2 and app.rewind(chat, 1) == 1 and not chat.messages


def test_a_port_that_is_none_or_taken_ends_in_a_line(base, capsys):
    assert main(["web", "--model", base, "--port", "0"]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["web", "--model", base, "--port", str(taken.getsockname()[1])]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minigpt4 web:")]
    assert "--port is 0; expected 1 to 65535" in lines[0] and "port" in lines[1]
