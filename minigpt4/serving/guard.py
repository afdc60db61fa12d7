"""An ASGI middleware between the network and an engine, which lets only well-formed chat requests through.

With OpenAI's error format and a status 4xx, it refuses other routes, bodies that are too large or not JSON, messages that
chat templates do not support, and images that cannot be read or may not be downloaded. Accepted requests have images as
data URLs, messages as lists of parts and, for an engine that does not use our processor, texts that cannot be read as
markers.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from .pictures import as_data_url, check_total

CHAT = "/v1/chat/completions"
MAX_BODY = 32_000_000  # bytes
MAX_PICTURES = 32
_READABLE = ("/v1/models", "/health", "/metrics", "/version")


class RequestError(Exception):
    """A refused request: status, message, OpenAI's code, and the offending parameter."""

    def __init__(self, status, message, code=None, param=None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def error_body(status, message, code=None, param=None):
    """OpenAI's error format."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = message.encode(errors="backslashreplace").decode()  # it may quote half a character
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error):
    """A `RequestError` as a response."""
    return JSONResponse(error_body(error.status, str(error), error.code, error.param), error.status)


class _Text(BaseModel):
    type: Literal["text"]
    text: str


class _Address(BaseModel):
    url: str


class _Picture(BaseModel):
    type: Literal["image_url"]
    image_url: _Address


_Part = Annotated[_Text | _Picture, Field(discriminator="type")]


def _as_parts(content):
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_as_parts)]


class _Chat(BaseModel):
    messages: Annotated[list[_Message], Field(min_length=1)]


def read(model, body):
    """A body as an instance of a pydantic class; raises RequestError with the first problem."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(400, f"{place}: {first['msg']}", "invalid_value", place.split(".")[0]) from error


def checked_messages(body, hosts=(), plain_text=str):
    """The messages of a request in the form for the engines; see the top of this file.

    Args:
        body: the request's parsed JSON.
        hosts: hosts that images may be downloaded from (`as_data_url`).
        plain_text: function applied to each text.

    Raises:
        RequestError: 400, with the number of the offending message.
    """
    messages, pixels, pictures = [], 0, 0
    for number, message in enumerate(read(_Chat, body).messages, 1):
        role = "system" if message.role == "developer" else message.role
        if role == "system" and number > 1:
            raise RequestError(400, f"message {number} has role {message.role!r}; only the first may", param="messages")
        content = []
        for part in message.content:
            if isinstance(part, _Text):
                content.append({"type": "text", "text": plain_text(part.text)})
                continue
            pictures += 1
            try:
                if role != "user":
                    raise ValueError(f"role {role!r} shows a picture; only 'user' may")
                if pictures > MAX_PICTURES:
                    raise ValueError(f"more than {MAX_PICTURES} pictures in a request")
                url, size = as_data_url(part.image_url.url, hosts)
                check_total(pixels := pixels + size)
            except ValueError as error:
                raise RequestError(400, f"message {number}: {error}", "invalid_image", "messages") from error
            content.append({"type": "image_url", "image_url": {"url": url}})
        if not any(part.get("text", "picture").strip() for part in content):
            raise RequestError(400, f"message {number} is empty; expected some text", param="messages")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "user":
        raise RequestError(400, "the last message is not the user's; there is nothing to answer", param="messages")
    return messages


class Guard:
    """The middleware.

    Args:
        app: the engine's ASGI app.
        hosts, plain_text: see `checked_messages`.
    """

    def __init__(self, app, hosts=(), plain_text=str):
        self.app, self.hosts, self.plain_text = app, frozenset(hosts), plain_text

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            try:
                receive = await self._checked(scope, receive)
            except RequestError as error:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def completed(self, body):
        """The checked body, with what else the engine needs."""
        return body

    async def _checked(self, scope, receive):
        """A `receive` that returns the checked body instead of the one that was sent."""
        method, path = scope["method"], scope["path"]
        if (method, path) != ("POST", CHAT):
            if method == "GET" and path.startswith(_READABLE):
                return receive
            raise RequestError(404, f"no such route: {method} {path[:80]}; there is POST {CHAT}", "not_found")
        if Headers(scope=scope).get("content-type", "").partition(";")[0].strip() != "application/json":
            # This also blocks what a web page could send here without a preflight request.
            raise RequestError(400, "the body is not JSON; expected Content-Type: application/json")
        body = await _json_body(receive)
        messages = await run_in_threadpool(checked_messages, body, self.hosts, self.plain_text)
        data = json.dumps(self.completed({**body, "messages": messages})).encode()
        fixed = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
        scope["headers"] = [*fixed, (b"content-length", str(len(data)).encode())]
        checked = [{"type": "http.request", "body": data, "more_body": False}]

        async def replay():
            return checked.pop() if checked else await receive()

        return replay


async def _json_body(receive) -> dict[str, Any]:
    """The JSON object that was sent; raises RequestError if it is not one, or too large."""
    data, more = bytearray(), True
    while more:
        part = await receive()
        if part["type"] == "http.disconnect":
            raise RequestError(400, "the connection was closed before the request was complete")
        data += part.get("body", b"")
        more = part.get("more_body", False)
        if len(data) > MAX_BODY:
            raise RequestError(413, f"the request has more than {MAX_BODY} bytes; scale its pictures down", "too_large")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({error})", "invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError(400, f"the body is a {type(body).__name__}; expected a JSON object", "invalid_json")
    return body
