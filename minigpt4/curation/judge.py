"""A judge that sees the image decides which of two answers invents less, behind any OpenAI-compatible server.

It is asked twice, with the answers in both orders, and only a consistent verdict counts: a judge that prefers whatever comes
first prefers neither. Its replies are kept; ties and unreadable replies give no preference.
"""

import re

from .counts import Report
from .endpoint import Stop
from .paid import CHARACTERS_PER_TOKEN, ask_waiting, show_waiting
from .sample import picture_address

PROMPT = (
    "You see an image, a question about it and two answers. An answer invents what it says of the image and the image does "
    "not show: objects, people, numbers, colours, places, words, actions. Only that counts: neither style nor length, and "
    "to leave something out is not to invent. Name in a line each what answer A and what answer B invents. Then write a "
    "last line with nothing but A, B or TIE: the answer that invents less, or TIE if neither does."
)
LONGEST = 1024  # tokens of a reply; a model that thinks first needs most of them
ORDERS = {"judge": ("first", "second"), "judge swapped": ("second", "first")}  # which answer is A, and which B
ALL_UNREADABLE = 8  # after this many unreadable replies and no readable one, the judge is considered unsuitable
_VERDICT = re.compile(r"^\W*(?:(?:the )?(?:verdict|answer|result)\W+)?(A|B|TIE)\W*$", re.IGNORECASE)


def judge(store, endpoint, temperature=None, prices=(0.0, 0.0)):
    """Compares every pending pair, in both orders; returns a `Report`.

    The second time, only pairs that were not a tie are asked about: the others cannot become a preference.

    Args:
        endpoint: an `Endpoint` of a model that sees pictures.
        temperature: of the judge; None leaves it to the server.
        prices: what a million prompt and completion tokens cost; the report adds them up.

    Raises:
        Stop: the server answers none of the requests, or nothing that can be read; what was answered is recorded.
    """
    settings = {**endpoint.settings(), "prompt": PROMPT, "temperature": temperature}
    parameters = {} if temperature is None else {"temperature": temperature}
    report, before = Report("judge"), _preferences(store)

    for step, order in ORDERS.items():
        run = store.run(step, settings)

        def work(row, order=order):
            sent = messages(row, order, picture_address(store, row))
            return endpoint.ask(sent, max_completion_tokens=LONGEST, **parameters)

        def record(row, reply, step=step, order=order, run=run):
            reading = read(reply, order)
            store.record(step, run, [{"picture": row["picture"], **reading}])
            report.count("ties", reading["better"] is None and reading["readable"])
            report.count("unreadable", not reading["readable"])
            if report.counts["unreadable"] > max(report.done, ALL_UNREADABLE - 1):  # `done` lacks the current one
                end = reply.text.strip()[-60:]
                raise Stop(f"{endpoint.url}: no reply ends with a line A, B or TIE (the last: {end!r}); use another judge")

        ask_waiting(store, step, endpoint, work, record, report, prices, unit="pair")
    report.count("new preferences", _preferences(store) - before)
    return report


def messages(row, order, address):
    """The conversation that is sent for a pair, its answers in this order, and its picture by a data URL."""
    parts = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": told(row, order)},
    ]
    return [{"role": "system", "content": PROMPT}, {"role": "user", "content": parts}]


def told(row, order):
    """The text about a pair for a judge."""
    return f"Question: {row['question']}\n\nAnswer A: {row[order[0]]}\n\nAnswer B: {row[order[1]]}"


def read(reply, order):
    """A `Reply` as the columns of a reading: "first", "second" or None is `better`, whichever was shown as A."""
    last = (reply.text.strip().splitlines() or [""])[-1]
    found = _VERDICT.match(last)
    return {
        "reply": reply.text,
        "readable": found is not None,
        "better": {"A": order[0], "B": order[1]}.get(found[1].upper()) if found else None,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }


def dry_run(store, model, url, prices=(0.0, 0.0)):
    """What `judge` would send, and what it would cost, as text; see `show_waiting`."""
    parts = []
    for step, order in ORDERS.items():

        def request(row, order=order):
            return f"  system: {PROMPT}\n  user: (the picture)\n{told(row, order)}", CHARACTERS_PER_TOKEN * LONGEST

        if step == "judge" or store.pending_count(step):
            parts.append(show_waiting(store, step, model, url, request, prices))
    return "\n".join(parts) + (
        f"\neach reply counted as {LONGEST} tokens, the most that it may have, and pictures not at all; a pair that is no "
        "tie is then asked about once more, in the other order"
    )


def _preferences(store):
    return store.value("SELECT COUNT(*) FROM preferences WHERE chosen IS NOT NULL")
