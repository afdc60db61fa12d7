"""Concurrent requests to a server with OpenAI's chat API.

The `openai` client handles retries: it repeats a request after 429, 5xx, time-outs and broken connections, with growing
pauses or as `Retry-After` says. If it gives up, that image fails; an error that would affect all images stops the step.
"""

import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import NamedTuple
from urllib.parse import urlsplit

OPENAI = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"


class Reply(NamedTuple):
    """A server's answer and the tokens it charges for; None if it does not say."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    whole: bool  # False: cut off at the length limit


class Stop(ValueError):
    """An error that would affect every further request."""


class Endpoint:
    """A model behind an OpenAI-compatible server.

    Args:
        model: its name there.
        url: base URL, for example "http://localhost:8000/v1".
        key_variable: environment variable with the key. Only OpenAI itself always needs one.
        concurrency: number of simultaneous requests.
        retries: how often the client repeats a request.
        timeout: seconds that a request may take.

    Raises:
        ValueError: not a URL, a key in the URL, or a missing key.
    """

    def __init__(self, model, url=OPENAI, key_variable=KEY_VARIABLE, concurrency=8, retries=5, timeout=120.0):
        from openai import OpenAI

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{_without_secrets(parts)}: not the address of a server; expected one such as {OPENAI}")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"{_without_secrets(parts)}: an address with a key in it; put the key in {key_variable} instead"
            )
        self._key = os.environ.get(key_variable, "").strip()
        if not self._key and parts.hostname == urlsplit(OPENAI).hostname:
            raise ValueError(f"{url} needs a key, and {key_variable} is not set; set it in the environment")
        self.model, self.url, self.concurrency, self.key_variable = model, url, concurrency, key_variable
        self._client = OpenAI(api_key=self._key or "none", base_url=url, max_retries=retries, timeout=timeout)

    def settings(self):
        """What a run records about it, without the key."""
        return {"model": self.model, "url": self.url}

    def ask(self, messages, **parameters):
        """One conversation -> `Reply`. `parameters`: of the chat API (temperature, max_completion_tokens, ...).

        Raises:
            Stop: the key is refused, the model is unknown, or there is no server at the URL.
            ValueError: this request failed.
        """
        import openai

        try:
            answer = self._client.chat.completions.create(model=self.model, messages=messages, **parameters)
            choice = answer.choices[0]
            text = choice.message.content or choice.message.refusal or ""
            usage = answer.usage
            return Reply(
                text,
                usage and usage.prompt_tokens,
                usage and usage.completion_tokens,
                choice.finish_reason != "length",
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise Stop(f"{self.url} refuses the key in {self.key_variable} ({self._reason(error)})") from None
        except openai.NotFoundError as error:
            reason = self._reason(error)
            raise Stop(
                f"{self.url} has no model {self.model!r}, or is not an OpenAI-compatible address ({reason})"
            ) from None
        except openai.APITimeoutError:
            raise ValueError(f"{self.url}: no answer in {self._client.timeout:g} s") from None
        except openai.APIConnectionError as error:
            kind = type(error.__cause__).__name__
            message = f"{self.url} cannot be reached ({self._reason(error.__cause__ or error)})"
            raise (Stop if kind == "ConnectError" else ValueError)(message) from None
        except openai.APIStatusError as error:
            raise ValueError(f"{self.url}: status {error.status_code} ({self._reason(error.response.text)})") from None
        except (AttributeError, IndexError, TypeError, ValueError, openai.OpenAIError) as error:
            raise ValueError(f"{self.url}: not an answer from an OpenAI-compatible server ({self._reason(error)})") from None

    def map(self, work, items):
        """Yields (item, the result of work(item) or the ValueError it raised) as they finish; lazily, in any order.

        Raises:
            Stop: the first of work's own; or so many failed in a row that the server itself must be at fault. What was
                under way is yielded before.
        """
        items, in_a_row, stop = iter(items), 0, None
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                running = {}
                while True:
                    while stop is None and len(running) < self.concurrency and (item := next(items, None)) is not None:
                        running[pool.submit(work, item)] = item
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        item, error = running.pop(future), future.exception()
                        if isinstance(error, Stop):
                            stop = stop or error
                        elif isinstance(error, ValueError):
                            in_a_row += 1
                            yield item, error
                            if in_a_row >= max(5, self.concurrency):
                                stop = stop or Stop(f"{in_a_row} requests in a row failed; the last: {error}")
                        elif error is not None:
                            raise error
                        else:
                            in_a_row = 0
                            yield item, future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if stop:
            raise stop

    def _reason(self, error):
        """An error's first line, shortened, without the key that a server may quote."""
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _without_secrets(parts):
    return f"{parts.scheme}://{parts.hostname}{parts.path}"
