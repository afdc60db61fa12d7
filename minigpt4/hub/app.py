"""A page to talk about images: what `minigpt4 web` serves, and a Space, whose variable `MODEL_ID` names the model.

As app.py of a Space with the Gradio SDK, together with the images in abilities/, it lets transformers download the model and
its code. It needs no other file of this package: the export replaces its one import from the package with that module's
source. The server keeps the conversation, a `ChatSession` for each open page, and frees it when the page is closed. What a
model writes is not trusted: its HTML is shown as text, or in a frame without scripts. On a Space with ZeroGPU, answers are
written by a process that has the GPU only for that time.
"""

import html
import json
import os
import re
from collections import OrderedDict
from pathlib import Path

import gradio as gr
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..modeling_minigpt4.chat import ChatSession

# For a Space with ZeroGPU, whose package must be imported before torch looks for a GPU. Not needed elsewhere.
GPU = None
if os.environ.get("SPACES_ZERO_GPU"):
    from spaces import GPU

MAX_PICTURES, MAX_FILE, MAX_TEXT = 8, "20mb", 20_000  # per question
QUESTION = "Describe this image in detail."  # for images without a question
MAX_WAITING = 32  # questions; one is answered at a time
MAX_SESSIONS = 64  # conversations kept in memory, each with its keys and values

_FOLDER = Path(__file__).with_name("abilities")
# What any model of this kind is trained to do: file, name, question. Photographs by Rachel Michetti and Stefan van der Walt,
# CC0, from scikit-image.
BASICS = [
    ("coffee.jpg", "Say what is there", "What is in this image?"),
    ("cat.jpg", "Describe in a sentence", "Describe this image in one short sentence."),
]
# The paper's examples, one ability per figure, also used by `minigpt4 evaluate --suite abilities`. The drawings were made
# for this project and are under its licence.
ABILITIES = [tuple(ability.values()) for ability in json.loads((_FOLDER / "questions.json").read_text("utf-8"))]
EXAMPLES = [*BASICS, *ABILITIES]
ABLE = 3e9  # parameters of a model that writes websites, poems and recipes; the paper's have 7 and 13 billion

_BUTTONS = {"photograph": "Camera", "save": "Download"}
_UNANSWERED = "Not answered"
_CODE = r"^ {0,3}```.*?(?:^ {0,3}```|\Z)|`[^`\n]+`"
_UNSAFE = re.compile(rf"({_CODE})|<|!\[", re.DOTALL | re.MULTILINE)
_WEBSITE = re.compile(r"^ {0,3}```html\n(.*?)(?:^ {0,3}```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_BARE_WEBSITE = re.compile(r"(?:<!doctype html|<html).*?(?:</html>|\Z)", re.DOTALL | re.IGNORECASE)
# Nothing that an answer refers to is loaded, neither by the page nor by a website in its frame.
_HEAD = """<meta http-equiv="Content-Security-Policy"
content="img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'none'">
"""
_WEBSITE_HEAD = """<!DOCTYPE html><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"><style>body {font-family: sans-serif}</style>"""
_SAVE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""
# The chat scrolls to its end, and on a phone past the first examples.
_SHOW_FIRST_EXAMPLES = """() => setTimeout(() => {
  for (let part = document.querySelector("#chat .examples"); part; part = part.parentElement) part.scrollTop = 0;
}, 500)"""
_SHOW_CAMERA = "() => setTimeout(() => document.querySelector('#camera').scrollIntoView({block: 'end'}), 100)"
_CSS = """
.gradio-container {width: 100%; max-width: 1000px !important; margin: 0 auto !important; padding: 0 !important}
.gradio-container .main {padding: 8px !important}
#chat .examples {grid-template-columns: repeat(3, 1fr); gap: 8px; padding: 8px; width: 100%; max-width: none}
#chat .example {padding: 8px; align-items: center; min-width: 0}
#chat .example-content, #chat .example-text-content {width: 100%; text-align: center}
#chat .example-image-container, #chat .example-image {width: 100%; height: 72px; object-fit: cover; border-radius: 6px}
#chat .example-text {font-size: 13px; line-height: 1.3; white-space: normal}
@media (min-width: 700px) {
  #chat .examples {grid-template-columns: repeat(4, 1fr)}
  #chat .example-image-container, #chat .example-image {height: 80px}
}
#chat .message img {max-height: 220px; max-width: 100%; width: auto}
#chat .message {overflow-wrap: anywhere}
#chat button[aria-label="Share"] {display: none}
.website {width: 100%; min-width: min(560px, 75vw); height: 360px; border: 0; border-radius: 8px; background: #fff}
footer {display: none !important}
"""


def build(model, processor, name):
    """The page over a model, a `gr.ChatInterface`.

    Args:
        model: a `MiniGPT4ForConditionalGeneration` in eval mode, also one loaded from the Hub.
        processor: its `MiniGPT4Processor`.
        name: what the page calls the model.
    """
    # Sessions by the hash that Gradio gives an open page, the most recently used last.
    say, sessions = speaker(model, processor, GPU), OrderedDict()

    def session(request):
        """The `ChatSession` of a page; the least recently used one makes room."""
        chat = sessions.setdefault(request.session_hash, None) or ChatSession(model, processor)
        sessions[request.session_hash] = chat
        sessions.move_to_end(request.session_hash)
        while len(sessions) > MAX_SESSIONS:
            sessions.popitem(last=False)
        return chat

    def answer(message, history, temperature, top_p, max_new_tokens, num_beams, penalty, request: gr.Request):
        """Yields the answer to a question as far as it is written, finally with any website in it."""
        chat, text = session(request), (message["text"] or "").strip()
        if rewind(chat, answered(history)) < answered(history):
            gr.Warning("The server has closed this conversation. The model answers without its earlier part.")
        dropped, settings = len(chat.dropped), {"do_sample": temperature > 0, "num_beams": int(num_beams)}
        if temperature > 0:
            settings |= {"temperature": temperature, "top_p": top_p}
        written = ""
        try:
            check(text, message["files"])
            for piece in say(
                chat,
                text or QUESTION,
                message["files"],
                max_new_tokens=int(max_new_tokens),
                repetition_penalty=float(penalty),
                **settings,
            ):
                written += piece
                yield shown(written)
        except (ValueError, RuntimeError) as error:  # or out of memory; a gr.Error would leave the page stuck
            yield gr.ChatMessage(_in_words(error, message["files"]), metadata={"title": _UNANSWERED})
            return
        if len(chat.dropped) > dropped:
            gr.Warning("The conversation is longer than the model can read; it no longer sees the oldest questions.")
        if not written:
            yield "*(The model gave an empty answer.)*"
        if found := _WEBSITE.search(fenced(written)):
            yield [shown(written), gr.HTML(preview(found[1]))]

    def stop(request: gr.Request):
        if chat := sessions.get(request.session_hash):
            chat.cancel()

    def leave(request: gr.Request):
        if chat := sessions.pop(request.session_hash, None):
            chat.cancel()

    def export(request: gr.Request):
        chat = sessions.get(request.session_hash)
        if not (chat and chat.messages):
            raise gr.Error("There is nothing to download yet.", print_exception=False)
        return json.dumps(chat.export(), indent=2, ensure_ascii=False)

    page = gr.ChatInterface(
        answer,
        multimodal=True,
        editable=True,
        title="MiniGPT-4",
        description=_description(name, model.num_parameters()),
        chatbot=gr.Chatbot(
            show_label=False,
            scale=1,
            min_height=320,
            layout="bubble",
            allow_tags=False,
            buttons=["copy", "copy_all"],
            feedback_options=None,
            elem_id="chat",
        ),
        textbox=gr.MultimodalTextbox(
            file_count="multiple",
            file_types=["image"],
            sources=["upload"],
            placeholder="Attach or paste images, then ask",
            max_plain_text_length=MAX_TEXT,
            stop_btn=True,
            elem_id="question",
        ),
        additional_inputs=_settings(model.generation_config),
        additional_inputs_accordion=gr.Accordion("Settings", open=False, elem_id="settings"),
        examples=[[{"text": question, "files": [str(_FOLDER / file)]}] for file, _, question in EXAMPLES],
        example_labels=[label for _, label, _ in EXAMPLES],
        example_icons=[str(_FOLDER / file) for file, _, _ in EXAMPLES],
        cache_examples=False,
        analytics_enabled=False,
        api_visibility="private",
        delete_cache=(600, 3600),  # seconds: uploads are deleted after an hour
    )
    with page:
        with gr.Row():
            photograph, save = (gr.Button(label, size="sm", elem_id=name) for name, label in _BUTTONS.items())
        _camera(photograph, page.textbox)
        exported = gr.Textbox(visible=False)
        save.click(export, None, exported, queue=False, api_visibility="private").success(None, exported, None, js=_SAVE)
        page.textbox.stop(stop, queue=False, api_visibility="private")
        page.unload(leave)
        page.load(js=_SHOW_FIRST_EXAMPLES)
    return page


def speaker(model, processor, gpu=None):
    """say(chat, text, images, **generation): an iterator over the pieces of a `ChatSession`'s answer.

    Args:
        gpu: `spaces.GPU` on a Space with ZeroGPU. What it decorates runs in another process without access to the
            conversations here: they are sent there as messages, and come back as messages with the answer.
    """

    def here(chat, text, images, **generation):
        yield from chat.ask(text, images, stream=True, **generation)

    if gpu is None:
        return here

    @gpu
    def there(messages, text, images, generation):
        chat = ChatSession(model, processor, messages)
        yield from chat.ask(text, images, stream=True, **generation)
        yield chat.export()

    def say(chat, text, images, **generation):
        for piece in there(chat.export(), text, images, generation):
            if isinstance(piece, str):
                yield piece
            else:
                chat.messages[:] = ChatSession(model, processor, piece).messages

    return say


def offer(page, model, processor):
    """Lets programs ask one question about one image: adds `ask` to the page's API, and to its MCP server if it has one.

    The components are hidden; they check, and download, what a program sends.
    """
    say = speaker(model, processor, GPU)

    def ask(image: str, question: str) -> str:
        """Answers a question about an image. It describes, counts, reads moods; what it says may be invented.

        Args:
            image: the image to look at.
            question: what to ask about it, in English.
        """
        try:
            check(question.strip(), [image] if image else [])
            return "".join(say(ChatSession(model, processor), question.strip() or QUESTION, image))
        except (ValueError, RuntimeError) as error:
            raise gr.Error(str(error).splitlines()[0], print_exception=False) from error

    with page:
        image = gr.Image(type="filepath", visible=False, label="Image")
        question = gr.Textbox(visible=False, label="Question", max_length=MAX_TEXT)
        said = gr.Textbox(visible=False, label="Answer")
        gr.on([], ask, [image, question], said, api_name="ask")


def serve(page, **where):
    """Serves a page until Ctrl-C.

    Args:
        where: arguments of `launch`: server_name, server_port, ...

    Raises:
        OSError: the port is taken.
    """
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1).launch(
        max_file_size=MAX_FILE,
        ssr_mode=False,
        footer_links=[],
        css=_CSS,
        head=_HEAD,
        # The default theme loads its fonts from another host.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        quiet=True,
        prevent_thread_lock=True,
        **where,
    )
    print(f"web: {page.local_url} (Ctrl-C ends)", flush=True)
    page.block_thread()


def check(text, files):
    """Raises ValueError for an empty or too large question."""
    if not (text or files):
        raise ValueError("Write a question, or attach an image.")
    if len(text) > MAX_TEXT:
        raise ValueError(f"The question has {len(text)} characters; at most {MAX_TEXT} are read.")
    if len(files) > MAX_PICTURES:
        raise ValueError(f"{len(files)} images; at most {MAX_PICTURES} go with a question.")


def answered(history):
    """How many questions have an answer in Gradio's history: an answer may be several consecutive messages."""
    said = [message for message in history if (message.get("metadata") or {}).get("title") != _UNANSWERED]
    roles = [message["role"] for message in said]
    return sum(role == "assistant" != before for before, role in zip(["", *roles], roles, strict=False))


def rewind(chat, turns):
    """Removes a `ChatSession`'s turns after its first questions, and returns how many questions are left."""
    said = [*chat.dropped, *chat.messages]
    questions = [place for place, message in enumerate(said) if message["role"] == "user"]
    end = questions[turns] if turns < len(questions) else len(said)
    dropped = len(chat.dropped)
    chat.dropped[:], chat.messages[:] = said[: min(end, dropped)], said[dropped:end]
    return min(turns, len(questions))


def fenced(text):
    """An answer with any website in it as a code block, for Markdown."""
    return text if "```" in text else _BARE_WEBSITE.sub(lambda found: f"\n```html\n{found[0]}\n```\n", text)


def shown(text):
    """The Markdown of an answer, in which HTML outside of code is text and external images are links."""
    return _UNSAFE.sub(lambda found: found[1] or {"<": "&lt;", "![": "!\\["}[found[0]], fenced(text))


def preview(website):
    """A frame that shows a website: no scripts, no forms, no loading, and no access to the page around it."""
    return f'<iframe class="website" title="Preview" sandbox srcdoc="{html.escape(_WEBSITE_HEAD + website)}"></iframe>'


def _description(name, parameters):
    """The lines under the title: which model answers, and which examples it cannot do."""
    size = f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{max(1, round(parameters / 1e6))} million"
    lines = [f"<b>{html.escape(name)}</b>, {size} parameters"]
    if parameters < ABLE:
        lines.append("It describes images: try the first three examples. The others need about 7 billion parameters.")
    lines.append("Answers may be invented. Not for identifying people.")
    return f"<center>{'<br>'.join(lines)}</center>"


def _camera(button, textbox):
    """The camera that a button shows; its photo is added to the question being written."""
    camera = gr.Image(
        sources=["webcam"],
        type="filepath",
        # On a phone, the rear camera.
        webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}}),
        label="Camera",
        height=280,
        visible=False,
        elem_id="camera",
    )

    def take(photo, question):
        return {**question, "files": [*question["files"], photo]}, gr.Image(None, visible=False)

    hidden = {"queue": False, "api_visibility": "private"}
    button.click(lambda: gr.Image(visible=True), None, camera, **hidden).then(js=_SHOW_CAMERA)
    camera.input(take, [camera, textbox], [textbox, camera], **hidden)


def _settings(config):
    """Sliders, with the model's generation config as defaults."""
    return [
        gr.Slider(
            0,
            2,
            config.temperature or 1.0 if config.do_sample else 0,
            step=0.1,
            label="Temperature (0: the likeliest word)",
        ),
        gr.Slider(0.05, 1, config.top_p or 0.9, step=0.05, label="Top-p"),
        gr.Slider(1, 1000, config.max_new_tokens or 300, step=1, label="Longest answer (tokens)"),
        gr.Slider(1, 8, config.num_beams or 1, step=1, label="Beams (with more than 1 the answer appears at once)"),
        gr.Slider(1, 2, config.repetition_penalty or 1.0, step=0.05, label="Repetition penalty"),
    ]


def _in_words(error, files):
    """The first line of an error, as Markdown, with the original names of uploaded files."""
    line = str(error).splitlines()[0]
    for file in files:
        line = line.replace(file, Path(file).name)
    return shown(line)


def load(repo):
    """(model, processor) of a repository or folder, on the GPU if there is one, in a precision that is fast there."""
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True).eval()
    if GPU is not None:  # ZeroGPU holds the weights back until a process has the GPU
        return model.to("cuda"), processor
    return model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"), processor


if __name__ == "__main__":
    loaded = load(os.environ["MODEL_ID"])
    whole = build(*loaded, os.environ["MODEL_ID"])
    if os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true":  # Gradio's variable for starting its MCP server
        offer(whole, *loaded)
    serve(whole)
