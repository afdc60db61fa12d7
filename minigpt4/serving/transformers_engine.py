"""`transformers serve` for a MiniGPT-4: its launcher and its model manager, behind `Guard` and our routes.

The engine's own app is not used: for a model that reads images, its chat answers requests one by one (see `batches`), and
its other routes would load any model of the Hub for anybody, or let images bypass the guard.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..processing.processing_minigpt4 import ASKING
from . import batches
from .allocator import return_large_buffers
from .answers import StopText
from .batches import Batches
from .guard import CHAT, Guard, RequestError, error_body, error_response, read

_log = logging.getLogger(__name__)

MAX_ACTIVE = 256  # requests being answered or waiting
MAX_TOKENS = 1024  # for requests without a limit
# Flags of the engine that concern its own generation and chat, which are not used.
_UNUSED = ("--continuous-batching", "--cb-", "--compile", "--default-seed", "--chat-template-kwargs", "--reasoning")
_Stop = Annotated[str, Field(min_length=1, max_length=100)]


class _StreamOptions(BaseModel):
    include_usage: bool = False


class Settings(BaseModel):
    """What a request may contain besides its messages. Unsupported options are refused, not silently ignored."""

    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


def check():
    """Raises ImportError if the engine's own requirements are not installed."""
    import openai  # noqa: F401
    import uvicorn  # noqa: F401
    from fastapi import FastAPI  # noqa: F401


def loading_flags(folder, device, dtype, load_in):
    """The engine's names for --device, --dtype and --load-in."""
    return ["--device", device, "--dtype", dtype, *(["--quantization", f"bnb-{load_in[0]}bit"] if load_in else [])]


def serve(folder, name, host, port, hosts, flags):
    """Runs `transformers serve` until it is stopped.

    Args:
        folder: the model's folder, or its id on the Hub.
        name: the model's name for clients.
        hosts: hosts that images may be downloaded from.
        flags: further command-line arguments of `transformers serve`.

    Raises:
        ValueError: a flag that it does not know, or that concerns an unused part of it; "@" in the folder's name, which it
            would read as a revision.
    """
    import typer
    from transformers.cli.serve import Serve
    from transformers.cli.serving import server

    for flag in flags:
        if flag.startswith(_UNUSED):
            raise ValueError(f"{flag.partition('=')[0]} has no effect here: requests are answered in batches; leave it out")
    if "@" in str(folder):
        raise ValueError(f"{folder}: `transformers serve` reads what follows the @ as a revision; rename the folder")
    return_large_buffers()
    register()

    def build(model_manager, *_, **__):
        return build_app(model_manager, name, hosts)

    server.build_server = build
    command = typer.Typer(add_completion=False)
    command.command()(Serve)
    try:
        typer.main.get_command(command).main(
            [str(folder), "--host", host, "--port", str(port), *flags], "transformers serve", standalone_mode=False
        )
    except Exception as error:
        if hasattr(error, "format_message"):  # click's, which typer may bundle under another name
            raise ValueError(error.format_message()) from error
        raise


def register():
    """Registers our class, which the engine looks up by name, as a model that reads images."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from .. import MiniGPT4ForConditionalGeneration

    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["minigpt4"] = MiniGPT4ForConditionalGeneration.__name__
    transformers.MiniGPT4ForConditionalGeneration = MiniGPT4ForConditionalGeneration


def _loaded(model_manager):
    """(model, processor) that the engine is pinned to; it loaded them when it started."""
    return model_manager.load_model_and_processor(model_manager.process_model_name(model_manager.force_model))


def build_app(model_manager, name, hosts=()):
    """The ASGI app: the guard, `/v1/chat/completions`, `/v1/models` and `/health`.

    Args:
        model_manager: the engine's `ModelManager`, pinned to one model.
    """
    chat = _Chat(*_loaded(model_manager), name)
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "minigpt4"}

    async def models(request):
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request):
        _check_name(request.path_params["name"], name)
        return JSONResponse(card)

    async def health(request):
        return JSONResponse({"status": "ok"})

    async def refused(request, error):
        return error_response(error)

    async def bad_value(request, error):
        return error_response(RequestError(400, str(error), "invalid_value"))

    async def failed(request, error):  # what went wrong is in the server's log
        return JSONResponse(error_body(500, "the server failed to answer this request"), 500)

    async def missing(request, error):
        return error_response(RequestError(404, "no such route", "not_found"))

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        chat.close()
        model_manager.shutdown()

    app = Starlette(
        routes=[
            Route(CHAT, chat.answer, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        exception_handlers={RequestError: refused, ValueError: bad_value, Exception: failed, 404: missing, 405: missing},
        lifespan=lifespan,
    )
    return Guard(app, hosts)


def _check_name(asked, name):
    if asked not in (None, name):
        raise RequestError(404, f"no model {asked[:80]!r} here; there is {name!r}", "model_not_found", "model")


class _Chat:
    """Answers chat requests in batches, each as a stream, which can be stopped."""

    def __init__(self, model, processor, name):
        self.model, self.processor, self.name, self.active = model, processor, name, 0
        self.batches = Batches(model, processor)
        # As many as the guard's, for the same reason: each image may take hundreds of MB.
        self.readers = ThreadPoolExecutor(2, "prompts")

    def close(self):
        """Ends the answers being written."""
        self.batches.close()
        self.readers.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request):
        """The route: a checked request -> JSON, or an event stream."""
        body = await request.json()
        settings = read(Settings, body)
        _check_name(settings.model, self.name)
        if self.active >= MAX_ACTIVE:
            raise RequestError(429, f"{MAX_ACTIVE} requests are already waiting; try again later", "rate_limit_exceeded")
        self.active += 1
        try:
            inputs = await asyncio.get_running_loop().run_in_executor(self.readers, self._read, body["messages"])
        finally:
            self.active -= 1
        prompt_tokens = inputs["input_ids"].shape[1]
        answer = self.batches.ask(inputs, _own_settings(self.model, prompt_tokens, settings))
        pieces = self._pieces(answer, settings, prompt_tokens)
        await anext(pieces)  # begins: from now on, whatever ends it also cancels the answer
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        if settings.stream:
            options = settings.stream_options or _StreamOptions()
            return StreamingResponse(_events(pieces, head, options.include_usage), media_type="text/event-stream")
        return await _whole(request, pieces, head)

    def _read(self, messages):
        """A request's messages as the model's inputs."""
        return self.processor.apply_chat_template(
            [{**message, "content": [_part(part) for part in message["content"]]} for message in messages],
            **ASKING,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    async def _pieces(self, answer, settings, prompt_tokens):
        """Yields None once started, then texts to show, then (finish_reason, usage). Closing it cancels the answer."""
        stop = StopText([settings.stop] if isinstance(settings.stop, str) else settings.stop or [])
        self.active += 1
        try:
            yield
            tokens = 0
            async for piece, tokens in answer:  # noqa: B007
                if text := stop.feed(piece):
                    yield text
                if stop.found:
                    break
            if stop.held:
                yield stop.held
            if not stop.found:
                tokens = len(answer.ids)
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
            yield "length" if answer.cut_off and not stop.found else "stop", usage
        finally:
            answer.cancel()
            self.active -= 1


def _part(part):
    """A part of a message in the chat template's form."""
    return part if part["type"] == "text" else {"type": "image", "url": part["image_url"]["url"]}


def _own_settings(model, prompt_tokens, settings):
    """A request's settings over the model's generation config; raises RequestError if they do not fit."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    asked = settings.max_completion_tokens or settings.max_tokens
    room = context - prompt_tokens
    if room < (asked or 1):
        raise RequestError(
            400,
            f"the messages take {prompt_tokens} tokens and the answer up to {asked or 1}, more than the {context} that the "
            "model reads; shorten the text or lower max_tokens",
            "context_length_exceeded",
            "messages",
        )
    sample = bool(model.generation_config.do_sample)
    if settings.temperature is not None or settings.top_p is not None:
        sample = settings.temperature != 0
    return batches.Settings(
        max_new_tokens=asked or min(room, MAX_TOKENS),
        do_sample=sample,
        temperature=settings.temperature or 1.0,
        top_p=settings.top_p or 1.0,
        seed=settings.seed,
    )


async def _events(pieces, head, include_usage):
    """Pieces of an answer as OpenAI's server-sent events. An error is an event, too: the status was already sent."""

    def event(choices, **more):
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    def choice(delta, reason=None):
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    usage = {"usage": None} if include_usage else {}
    async with contextlib.aclosing(pieces):
        yield event(choice({"role": "assistant", "content": ""}), **usage)
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield event(choice({"content": piece}), **usage)
                    continue
                yield event(choice({}, piece[0]), **usage)
                if include_usage:
                    yield event([], usage=piece[1])
        except RuntimeError as error:
            _log.error("an answer broke off: %s", error)
            yield f"data: {json.dumps(error_body(500, 'the server failed to finish this answer'))}\n\n"
        yield "data: [DONE]\n\n"


async def _whole(request, pieces, head):
    """Pieces of an answer as one `chat.completion`; abandoned if the client disconnects."""
    text = ""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, str):
                text += piece
            else:
                reason, usage = piece
            if await request.is_disconnected():
                return Response(status_code=499)
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
