"""Answers requests to a Hugging Face Inference Endpoint, whose container loads this file from the model's folder.

    {"inputs": {"text": "What is in the picture?", "image": "<base64 or data: URL>"}, "parameters": {"max_new_tokens": 60}}
    {"inputs": [{"role": "user", "content": [{"type": "image", "image": "..."}, {"type": "text", "text": "..."}]}]}
      -> [{"generated_text": "..."}]

It is self-contained: transformers loads the model and its code from the same folder. A bad request raises ValueError with
one line, which the container (huggingface-inference-toolkit) answers as status 400 {"error": line}. That container sends an
answer as a whole; `EndpointHandler.stream` is for a container of your own that streams it.
"""

import base64
import binascii
import threading

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

# The question for an image without a text: the first of the paper's four stage-2 instructions.
QUESTION = "Describe this image in detail."

MAX_PICTURES = 16  # per request; each may be large once decoded

# What a request may set, with bounds. Other arguments of `generate` are for the operator only: some run code.
PARAMETERS = {
    "max_new_tokens": (int, 1, 2048),
    "min_new_tokens": (int, 0, 2048),
    "do_sample": (bool, False, True),
    "temperature": (float, 0.01, 10.0),
    "top_p": (float, 0.01, 1.0),
    "top_k": (int, 0, 1000),
    "num_beams": (int, 1, 8),
    "repetition_penalty": (float, 0.1, 10.0),
}


class EndpointHandler:
    """Loads the model in a folder once, on the GPU if there is one, and answers requests one by one."""

    def __init__(self, path=""):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True).to(device).eval()

    def __call__(self, data):
        """Answers one request.

        Args:
            data: {"inputs", "parameters"}. `inputs` is {"text", "image"} (or "images", a list), only an image, only a
                text, or messages as for `apply_chat_template`, also with OpenAI's "image_url". An image is base64, a
                data: URL, bytes or a PIL image; URLs are not downloaded, and no file is opened.
                `parameters`: see PARAMETERS.

        Returns:
            [{"generated_text": answer}]

        Raises:
            ValueError: one line that says what is wrong with the request.
        """
        inputs, parameters = self._inputs(data)
        length = inputs["input_ids"].shape[1]
        ids = self.model.generate(**inputs, **parameters)[0, length:]
        return [{"generated_text": self.processor.decode(ids, skip_special_tokens=True).strip()}]

    def stream(self, data):
        """Answers one request piece by piece.

        Args:
            data: as for `__call__`, with one beam.

        Returns:
            An iterator over {"token": {"text": piece}}, and finally {"generated_text": answer}. Closing it ends the answer.

        Raises:
            ValueError: immediately, as for `__call__`.
        """
        inputs, parameters = self._inputs(data)
        if parameters.get("num_beams", 1) > 1:
            raise ValueError(f"parameter num_beams is {parameters['num_beams']}; expected 1 for an answer in pieces")
        return self._pieces(inputs, parameters)

    def _pieces(self, inputs, parameters):
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        unwanted, failed, answer = threading.Event(), [], ""

        def wanted(input_ids, scores, **_):  # a stopping criterion
            return torch.full((len(input_ids),), unwanted.is_set(), device=input_ids.device)

        def write():
            try:
                self.model.generate(**inputs, **parameters, streamer=streamer, stopping_criteria=[wanted])
            except Exception as error:  # raised where the answer is read
                failed.append(error)
                streamer.end()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for piece in streamer:
                if piece:
                    answer += piece
                    yield {"token": {"text": piece}}
        finally:
            unwanted.set()
            writer.join()
        if failed:
            raise failed[0]
        yield {"generated_text": answer.strip()}

    def _inputs(self, data):
        """(inputs of the model, arguments of `generate`) of a request."""
        if not isinstance(data, dict):
            raise ValueError(f"the request is a {type(data).__name__}; expected an object with inputs")
        parameters = _checked(data.get("parameters"))
        inputs = self.processor.apply_chat_template(
            self._messages(data.get("inputs")),
            add_generation_prompt=True,
            enable_thinking=False,  # as in training, for templates that have such a switch
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        self._check_length(inputs["input_ids"].shape[1], parameters)
        return inputs, parameters

    def _messages(self, inputs):
        """The conversation of a request, with decoded images."""
        messages = [_message(message) for message in _as_messages(inputs)]
        if any(message["role"] == "system" for message in messages[1:]):
            raise ValueError("a message with role 'system' that is not the first")
        if messages[-1]["role"] != "user":
            raise ValueError("the last message is not the user's; there is nothing to answer")
        pictures = [part for message in messages for part in message["content"] if part["type"] == "image"]
        if len(pictures) > MAX_PICTURES:
            raise ValueError(f"{len(pictures)} pictures; expected at most {MAX_PICTURES}")
        for part in pictures:
            part["image"] = self.processor.image_processor.fetch_images(_decoded(part["image"]))
        return messages

    def _check_length(self, length, parameters):
        asked = parameters.get("max_new_tokens") or self.model.generation_config.max_new_tokens or 0
        context = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if context is not None and length + asked > context:
            raise ValueError(f"{length} tokens and {asked} to come are more than the model's {context}; shorten the request")


def _as_messages(inputs):
    """The messages of a request, from any of its forms."""
    if isinstance(inputs, list):
        if not inputs:
            raise ValueError("inputs is an empty list; expected messages")
        return inputs
    if not isinstance(inputs, dict):
        inputs = {"text": inputs} if isinstance(inputs, str) else {"image": inputs}
    images = inputs.get("images") or [inputs.get("image")]
    if not isinstance(images, list):
        raise ValueError(f"images is of type {type(images).__name__}; expected a list of images")
    images = [{"type": "image", "image": image} for image in images if image is not None]
    text = inputs.get("text") or (QUESTION if images else "")
    if not text:
        raise ValueError('inputs has neither a text nor an image; expected {"text": ..., "image": ...} or messages')
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def _message(message):
    """A message of a request in the chat template's form, its images still encoded."""
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"a message with role {str(role)[:80]!r}; expected system, user or assistant")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError(f"a message whose content is {type(content).__name__}; expected a text or a list of parts")
    parts = [_part(part) for part in parts]
    if not any(part.get("text", "picture").strip() for part in parts):
        raise ValueError(f"a message of role {role!r} is empty; expected some text")
    return {"role": role, "content": parts}


def _part(part):
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError("a part of type 'text' without a text")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url"):
        raise ValueError(f"a part of type {str(kind)[:80]!r}; expected a text, an image or an image_url")
    image = next((part[name] for name in ("image", "image_url", "base64", "url") if part.get(name) is not None), None)
    return {"type": "image", "image": image.get("url") if isinstance(image, dict) else image}


def _decoded(source):
    """Bytes of an encoded image, or a PIL image as it is."""
    if not isinstance(source, str):
        if source is None or isinstance(source, int | float | list | dict):
            raise ValueError(f"a picture that is {type(source).__name__}; expected base64, a data: URL or bytes")
        return source
    if source.startswith(("http://", "https://")):
        raise ValueError(f"{source[:80]}: addresses are not fetched; send the picture itself, as base64")
    if source.startswith("data:"):
        head, _, source = source.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"{head[:80]}: a data: URL that is not in base64")
    try:
        return base64.b64decode("".join(source.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a picture that is not valid base64 ({error})") from error


def _checked(parameters):
    """The parameters of a request as arguments of `generate`."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters is of type {type(parameters).__name__}; expected an object")
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise ValueError(f"unknown parameter {str(name)[:80]!r}; expected {', '.join(PARAMETERS)}")
        kind, low, high = PARAMETERS[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or not low <= value <= high:
            raise ValueError(f"parameter {name} is {str(value)[:80]}; expected {kind.__name__} from {low} to {high}")
    return dict(parameters)
