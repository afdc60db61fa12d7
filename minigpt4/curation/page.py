"""The web page for verification: one image at a time, its text with the fix's changes, one key per decision.

a accept    e edit (Ctrl+Enter saves, Esc leaves)    r reject    u undo
"""

import base64
import html
import io
import json
import secrets

import gradio as gr

from ..processing.image_processing_minigpt4 import load_image
from .sample import read_picture
from .verify import PASSED

_SIDE = 768  # longer side of a shown image in pixels
_ROWS = 100  # of the list at a time
_KEYS = """<script>
document.addEventListener("keydown", (event) => {
  const click = (id) => document.querySelector(`#${id}`)?.click();
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    if (event.key === "Enter" && event.ctrlKey && event.target.closest("#text")) { event.target.blur(); click("accept"); }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "e") { event.preventDefault(); document.querySelector("#text textarea")?.focus(); return; }
  const button = {a: "accept", r: "reject", u: "undo"}[event.key];
  if (button) { event.preventDefault(); click(button); }
});
</script>"""
_CSS = """
.gradio-container {max-width: 1100px !important; padding: 8px !important}
#card img {max-height: 45vh; max-width: 100%; display: block; margin: 0 auto}
#card p {line-height: 1.5; overflow-wrap: anywhere; margin: 8px 0}
#card ins {background: #cdf5d3; color: #0a3d15; text-decoration: none} #card del {background: #fbd5d5; color: #6b1111}
#card .about {font-size: 0.85em; opacity: 0.75}
#decide {position: sticky; bottom: 0; z-index: 5; background: var(--body-background-fill); padding: 6px 0;
  flex-wrap: nowrap; align-items: stretch} #decide button {min-width: 0; padding: 10px 4px; white-space: nowrap}
@media (max-width: 500px) {#decide button {font-size: 15px}}
#progress {font-variant-numeric: tabular-nums} #progress progress {width: 100%; display: block; accent-color: #f97316}
"""


def serve(desk, host="127.0.0.1", port=7860):
    """Serves the page until Ctrl-C; returns a summary line of the decisions.

    Raises:
        OSError: the port is taken.
    """
    before = desk.store.count("verify")
    page = build(desk)
    page.queue(default_concurrency_limit=8)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        css=_CSS,
        head=_KEYS,
        # The default theme loads its fonts from another host.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    print(f"verify: {page.local_url} (Ctrl-C ends)", flush=True)
    page.block_thread()
    return f"verify: {desk.store.count('verify') - before} decided"


def build(desk):
    """The page over a `Desk`."""
    with gr.Blocks(title="Verify", analytics_enabled=False) as page:
        remembered = gr.BrowserState("", storage_key="minigpt4-reviewer", secret="minigpt4")
        # Sent with each click, so that a double click on one image cannot decide the next one.
        picture = gr.Textbox("", visible=False)
        progress = gr.HTML(elem_id="progress")
        with gr.Tab("Decide"):
            card = gr.HTML(elem_id="card")
            text = gr.Textbox(label="Text (e edits, Ctrl+Enter saves, Esc leaves)", lines=3, elem_id="text")
            with gr.Row(elem_id="decide"):
                accept = gr.Button("Accept (a)", variant="primary", elem_id="accept")
                reject = gr.Button("Reject (r)", variant="stop", elem_id="reject")
                undo = gr.Button("Undo (u)", elem_id="undo")
            with gr.Row():
                rule = gr.Dropdown(_choices(desk), value=PASSED, label="Show what", elem_id="rule")
                reviewer = gr.Textbox("", label="Your name", elem_id="reviewer", max_lines=1)
        with gr.Tab("All"):
            words = gr.Textbox("", label="Search in texts", elem_id="words", max_lines=1)
            only = gr.Dropdown([("all", ""), *_choices(desk)], value="", label="Of", elem_id="only")
            table = gr.Dataframe(
                headers=["text", "rule", "decision", "picture"],
                column_widths=["60%", "110px", "90px", "130px"],
                interactive=False,
                wrap=True,
                max_height=700,
                elem_id="table",
            )
            last = gr.State("")
            more = gr.Button("Next rows", elem_id="more")

        shown = [picture, card, text, progress]

        def show(name, wanted, message=""):
            return _shown(desk, desk.next(name, wanted), wanted, message)

        def begin(name, wanted):
            name = name or f"reviewer-{secrets.token_hex(2)}"
            return [name, name, gr.Dropdown(choices=_choices(desk)), *show(name, wanted)]

        def decide(kind):
            def handle(name, wanted, current, edited):
                if not current:
                    return show(name, wanted)
                known = desk.row(current)
                changed = known is not None and edited.strip() != (known["text"] or "").strip()
                new = desk.decide(name, current, "edit" if kind == "accept" and changed else kind, edited)
                return show(
                    name, wanted, "" if new else f"{current[:12]} had been decided on already; that decision stands."
                )

            return _reporting(handle)

        def take_back(name, wanted):
            row = desk.undo(name)
            if row is None:
                return show(name, wanted, "Nothing of yours to undo.")
            return _shown(desk, row, wanted, "Taken back.")

        def listed(found, which, after=""):
            rows = desk.search(found, which or None, after, _ROWS)
            cells = [[row["text"], row["rule"] or "", row["decision"] or "", row["picture"][:12]] for row in rows]
            return cells, rows[-1]["picture"] if len(rows) == _ROWS else ""

        def chosen(event: gr.SelectData, wanted):
            row = next(iter(desk.search(event.row_value[-1], limit=1)), None)
            return _shown(desk, row, wanted, "Chosen from the list; see Decide.")

        inputs = [reviewer, rule, picture, text]
        page.load(_reporting(begin), [remembered, rule], [reviewer, remembered, rule, *shown])
        page.load(listed, [words, only], [table, last])
        reviewer.blur(lambda name: name.strip()[:60], reviewer, remembered)
        accept.click(decide("accept"), inputs, shown)
        reject.click(decide("reject"), inputs, shown)
        undo.click(_reporting(take_back), [reviewer, rule], shown)
        rule.input(_reporting(show), [reviewer, rule], shown)
        gr.on([words.submit, words.change, only.input], listed, [words, only], [table, last], trigger_mode="always_last")
        more.click(listed, [words, only, last], [table, last])
        table.select(chosen, rule, shown)
    return page


def _reporting(handle):
    """Shows understandable errors as a message; the image stays."""

    def wrapped(*arguments):
        try:
            return handle(*arguments)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error).splitlines()[0], print_exception=False) from error

    return wrapped


def _choices(desk):
    return [(f"{rule} ({count})", rule) for rule, count in (desk.rules() or {PASSED: 0}).items()]


def _shown(desk, row, rule, message=""):
    """Values of picture, card, text and progress."""
    decided, waiting = desk.progress(rule)
    line = (
        f"<b>{decided}</b> decided, <b>{waiting}</b> remaining of <i>{html.escape(rule)}</i>"
        f'<progress value="{decided}" max="{max(1, decided + waiting)}"></progress>'
    )
    progress = f"{line}{html.escape(message)}" if message else line
    if row is None:
        left = "Others are looking at what remains." if waiting else "Nothing is left to decide here."
        return "", f"<p>{left}</p>", "", progress
    return row["picture"], _card(desk, row), row["text"], progress


def _card(desk, row):
    """The image, the text with the fix's insertions and deletions, and why; all model output is escaped."""
    try:
        image = load_image(read_picture(desk.store, row))
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        source = base64.b64encode(buffer.getvalue()).decode()
        picture = f'<img alt="the picture" src="data:image/jpeg;base64,{source}">'
    except ValueError as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    tags = {"=": "{}", "-": "<del>{}</del>", "+": "<ins>{}</ins>"}
    text = " ".join(tags[kind].format(html.escape(words)) for kind, words in json.loads(row["diff"]))
    about = [f"picture {row['picture'][:12]}"]
    if row["problem"]:
        about.append(f"the fix was not taken: {row['problem']}")
    if row["rule"]:
        about.append(f"rejected by rule: {row['rule']} ({row['detail']})")
    if row["decision"]:
        about.append(f"decided: {row['decision']} by {row['reviewer'] or 'somebody'}")
    return f'{picture}<p id="diff">{text}</p><p class="about">{html.escape("; ".join(about))}</p>'
