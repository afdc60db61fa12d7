"""Step 3: an LLM repairs each description with the paper's prompt, behind any OpenAI-compatible server.

What comes back is checked. If a check fails, the original text goes on and the row says why; the answer is kept beside it,
for it was paid for. An answer is recorded as it arrives: after a stop only requests that were under way are made again.
"""

import json
import math

from tqdm.auto import tqdm

from .endpoint import Stop
from .report import Report
from .texts import APOLOGY, AS_AN_AI, EXPLANATION, REFUSAL, difference, is_english, kept_share

PROMPT = (  # the paper's (section 3.2)
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, not English sentences, "
    "and so on. Remove unnecessary repetition. Rewrite any incomplete sentences. Return directly the results without "
    "explanation. Return directly the input paragraph if it is already correct without explanation."
)
MAX_FACTOR = 1.5  # what comes back may be that many times as long as what was sent
LEAST_KEPT = 0.5  # and that share of its words must come from there: a repair adds little
_CHARACTERS_PER_TOKEN = 4  # of English, about


def fix(store, endpoint, temperature=None, max_factor=MAX_FACTOR, prices=(0.0, 0.0)):
    """Sends every description that has no fix yet; returns a `Report`.

    Args:
        endpoint: an `Endpoint`.
        temperature: of the LLM; None leaves it to the server.
        max_factor: see `problem`.
        prices: what a million prompt and completion tokens cost; the report adds them up.

    Raises:
        Stop: the server answers none of the requests; what was answered until then is recorded.
    """
    settings = {**endpoint.settings(), "prompt": PROMPT, "temperature": temperature, "max_factor": max_factor}
    run, report = store.run("fix", settings), Report("fix")
    parameters = {} if temperature is None else {"temperature": temperature}
    spent = [0, 0]

    def work(row):
        # More would be refused for its length; and a server that never ends costs no more than that.
        longest = math.ceil(max_factor * len(row["answer"]) / 3) + 16
        return endpoint.ask(messages(row["answer"]), max_completion_tokens=longest, **parameters)

    with tqdm(desc="fix", total=store.pending_count("fix"), unit="text") as bar:
        try:
            for row, reply in endpoint.map(work, store.pending("fix")):
                if isinstance(reply, ValueError):
                    report.failed(f"{row['picture'][:12]}: {reply}")
                else:
                    wrong = problem(row["answer"], reply, max_factor)
                    store.record("fix", run, [fixed(row, reply, wrong)])
                    report.done += 1
                    if wrong or _changed(row, reply):
                        report.count(f"kept as they were ({wrong})" if wrong else "changed")
                    spent = [total + (n or 0) for total, n in zip(spent, reply[1:3], strict=True)]
                bar.update()
        except Stop as error:
            raise Stop(f"{error}; {report.done} done, the same command goes on") from None
        finally:
            if report.done:
                cost = sum(n * price / 1e6 for n, price in zip(spent, prices, strict=True))
                report.note(
                    f"{spent[0]} prompt + {spent[1]} completion tokens" + (f", {cost:.2f} in all" if any(prices) else "")
                )
    return report


def messages(text):
    """The conversation that is sent for a text: the prompt is the system's, for the text is data and not an order."""
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
    """The row that is recorded: the fix, or where something is wrong with it the original."""
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


def dry_run(store, model, url, prices=(0.0, 0.0), shown=2):
    """What `fix` would send, as text: the first requests, and an estimate of tokens and cost. Nothing is sent."""
    lines, count, prompt, completion = [], 0, 0, 0
    for row in store.pending("fix"):
        if count < shown:
            turns = "\n".join(f"  {turn['role']}: {turn['content']}" for turn in messages(row["answer"]))
            lines.append(f"to {url}, model {model}, for picture {row['picture'][:12]}:\n{turns}\n")
        count += 1
        prompt += (len(PROMPT) + len(row["answer"])) // _CHARACTERS_PER_TOKEN
        completion += len(row["answer"]) // _CHARACTERS_PER_TOKEN
    cost = (prompt * prices[0] + completion * prices[1]) / 1e6
    estimate = f"about {prompt} prompt and {completion} completion tokens"
    lines.append(f"{count} requests, {estimate}" + (f", about {cost:.2f} in all" if any(prices) else ""))
    return "\n".join(lines)


def _changed(row, reply):
    return row["answer"].split() != reply.text.split()
