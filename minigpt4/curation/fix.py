"""Step 3: an LLM repairs each description with the paper's prompt, behind any OpenAI-compatible server.

The reply is checked. If a check fails, the original text is used and the row says why; the reply is also kept, since it was
paid for. Replies are recorded as they arrive: after a stop, only requests in flight are repeated.
"""

import json
import math

from .counts import Report
from .paid import ask_waiting, show_waiting
from .texts import APOLOGY, AS_AN_AI, EXPLANATION, REFUSAL, difference, is_english, kept_share

PROMPT = (  # the paper's (section 3.2)
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, not English sentences, "
    "and so on. Remove unnecessary repetition. Rewrite any incomplete sentences. Return directly the results without "
    "explanation. Return directly the input paragraph if it is already correct without explanation."
)
MAX_FACTOR = 1.5  # a reply may be at most this many times as long as its input
LEAST_KEPT = 0.5  # at least this share of its words must come from the input: a repair adds little


def fix(store, endpoint, temperature=None, max_factor=MAX_FACTOR, prices=(0.0, 0.0)):
    """Sends every description that has no fix yet; returns a `Report`.

    Args:
        endpoint: an `Endpoint`.
        temperature: the LLM's; None leaves it to the server.
        max_factor: see `problem`.
        prices: what a million prompt and completion tokens cost; the report adds them up.

    Raises:
        Stop: the server answers none of the requests; what was answered until then is recorded.
    """
    settings = {**endpoint.settings(), "prompt": PROMPT, "temperature": temperature, "max_factor": max_factor}
    run, report = store.run("fix", settings), Report("fix")
    parameters = {} if temperature is None else {"temperature": temperature}

    def work(row):
        # Anything longer would be rejected anyway, and this limits the cost of a reply that never ends.
        longest = math.ceil(max_factor * len(row["answer"]) / 3) + 16
        return endpoint.ask(messages(row["answer"]), max_completion_tokens=longest, **parameters)

    def record(row, reply):
        wrong = problem(row["answer"], reply, max_factor)
        store.record("fix", run, [fixed(row, reply, wrong)])
        if wrong or _changed(row, reply):
            report.count(f"kept as they were ({wrong})" if wrong else "changed")

    ask_waiting(store, "fix", endpoint, work, record, report, prices)
    return report


def messages(text):
    """The conversation sent for a text: the prompt is a system message, because the text is data, not an instruction."""
    return [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]


def problem(original, reply, max_factor=MAX_FACTOR):
    """Why a `Reply` cannot take the original's place, or None."""
    text = reply.text.strip()
    checks = {
        "empty": not text,
        "cut off": not reply.whole,
        "too long": len(text) > max_factor * len(original),
        "as an AI": AS_AN_AI.search(text),
        "refusal": REFUSAL.search(text) or (APOLOGY.search(text) and not APOLOGY.search(original)),
        "explanation": EXPLANATION.search(text),
        "not English": not is_english(text),
        "other words": kept_share(original, text) < LEAST_KEPT,
    }
    return next((name for name, failed in checks.items() if failed), None)


def fixed(row, reply, wrong):
    """The row to record: the fix, or the original if something is wrong with it."""
    text = row["answer"] if wrong else reply.text.strip()
    return {
        "picture": row["picture"],
        "answer": reply.text,
        "problem": wrong,
        "text": text,
        "diff": json.dumps(difference(row["answer"], text), ensure_ascii=False),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }


def dry_run(store, model, url, prices=(0.0, 0.0)):
    """What `fix` would send, and what it would cost, as text; see `show_waiting`."""

    def request(row):
        turns = "\n".join(f"  {turn['role']}: {turn['content']}" for turn in messages(row["answer"]))
        return turns, len(row["answer"])

    return show_waiting(store, "fix", model, url, request, prices)


def _changed(row, reply):
    return row["answer"].split() != reply.text.split()
