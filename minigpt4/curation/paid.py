"""Shared by the steps that ask an LLM behind a server: replies are recorded as they arrive, and tokens added up."""

from tqdm.auto import tqdm

from .endpoint import Stop

CHARACTERS_PER_TOKEN = 4  # approximately, for English


def ask_waiting(store, step, endpoint, work, record, report, prices=(0.0, 0.0), unit="text"):
    """Asks about every pending row of a step. After a stop, only requests in flight are repeated.

    Args:
        work: row -> `Reply`, in a thread of the `Endpoint`. record: (row, reply), called here for each reply as it arrives.
        report: counts what was done and what failed. prices: of a million prompt and completion tokens, for its last line.

    Raises:
        Stop: the server answers none of the requests; what was answered until then is recorded.
    """
    spent, before = [0, 0], report.done
    with tqdm(desc=step, total=store.pending_count(step), unit=unit) as bar:
        try:
            for row, reply in endpoint.map(work, store.pending(step)):
                if isinstance(reply, ValueError):
                    report.failed(f"{row['picture'][:12]}: {reply}")
                else:
                    spent = [total + (n or 0) for total, n in zip(spent, reply[1:3], strict=True)]
                    record(row, reply)
                    report.done += 1
                bar.update()
        except Stop as error:
            raise Stop(f"{error}; {report.done} done, the same command continues") from None
        finally:
            if report.done > before:
                cost = sum(n * price / 1e6 for n, price in zip(spent, prices, strict=True))
                report.note(
                    f"{spent[0]} prompt + {spent[1]} completion tokens" + (f", {cost:.2f} in all" if any(prices) else "")
                )


def show_waiting(store, step, model, url, request, prices=(0.0, 0.0), shown=2):
    """A preview of what a step would send: the first requests, and an estimate of tokens and cost. Nothing is sent.

    Args:
        request: row -> (text that is sent, the characters that come back at most).
    """
    lines, count, prompt, completion = [], 0, 0, 0
    for row in store.pending(step):
        told, longest = request(row)
        if count < shown:
            lines.append(f"to {url}, model {model}, for picture {row['picture'][:12]}:\n{told}\n")
        count += 1
        prompt += len(told) // CHARACTERS_PER_TOKEN
        completion += longest // CHARACTERS_PER_TOKEN
    cost = (prompt * prices[0] + completion * prices[1]) / 1e6
    estimate = f"about {prompt} prompt and {completion} completion tokens"
    lines.append(f"{count} requests, {estimate}" + (f", about {cost:.2f} in all" if any(prices) else ""))
    return "\n".join(lines)
