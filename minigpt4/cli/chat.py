"""Ask a MiniGPT-4 about images: one question with --ask, a conversation without."""

import contextlib
import sys
import warnings
from pathlib import Path

from . import loading

_HELP = """\
/image FILE   add an image to the next question; repeat it for several
/reset        forget the conversation
/save FILE    write the conversation as JSON, with its images
/help         this list
Ctrl-C stops an answer. An empty line or Ctrl-D ends."""
_HISTORY_LENGTH = 1000


def add_arguments(parser):
    """Adds the arguments of `minigpt4 chat`."""
    parser.add_argument("--model", default="embedded", help='"embedded" (the default), a folder, or a Hub id')
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--ask", metavar="TEXT", help="one question; only the answer goes to stdout")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="longest answer (default: 200)")
    loading.add_arguments(parser)


def run(arguments):
    """Loads the model, then answers one question or starts a conversation."""
    from ..processing.image_processing_minigpt4 import load_image

    pictures = [load_image(path) for path in arguments.image]
    if arguments.ask is not None and not arguments.ask.strip():
        raise ValueError("--ask is empty; expected a question")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {arguments.max_new_tokens}; expected 1 or more")
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, processor = loading.load_model(arguments)

    def start():
        return model.chat_session(processor, max_new_tokens=arguments.max_new_tokens)

    if arguments.ask is not None:
        show(start().ask(arguments.ask, pictures, stream=True))
        return
    with warnings.catch_warnings(), lines_kept():
        warnings.showwarning = lambda message, *_: tell(message)
        converse(start, pictures)


def converse(start, pictures):
    """Questions and commands until an empty line or the end of stdin; the images belong to the first question.

    Args:
        start: function that returns a new `ChatSession`.
    """
    chat, pictures = start(), list(pictures)
    tell(f"{len(pictures)} image(s). Ask; /help lists commands, an empty line ends.")
    while line := read_line():
        command, _, argument = line.partition(" ")
        said = len(chat.messages) + len(chat.dropped)
        try:
            if command == "/image":
                pictures.append(load_named(argument))
                tell(f"{len(pictures)} image(s) for the next question")
            elif command == "/reset":
                chat, pictures = start(), []
            elif command == "/save":
                save(chat, argument)
            elif line.startswith("/"):
                tell(_HELP if line == "/help" else f"{command}: no such command; /help lists them")
            else:
                show(chat.ask(line, pictures, stream=True))
        except (ValueError, OSError) as error:
            tell(error)
        except KeyboardInterrupt:
            print()
        if len(chat.messages) + len(chat.dropped) > said:
            pictures = []


def show(pieces):
    """Prints an answer while it is written; whatever stops the printing stops the answer."""
    with contextlib.closing(pieces):
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


def tell(text):
    """Prints what is not an answer."""
    print(text, file=sys.stderr)


def load_named(argument):
    """The image that `/image` names; ~ and quotes work as in a shell."""
    from ..processing.image_processing_minigpt4 import load_image

    name = argument.strip().strip("'\"")
    if not name:
        raise ValueError("expected /image FILE")
    return load_image(Path(name).expanduser())


def save(chat, argument):
    """Writes the conversation, as far back as it still fits into the context."""
    from ..durable_files import write_json

    path = Path(argument.strip().strip("'\"")).expanduser()
    if not argument.strip():
        raise ValueError("expected /save FILE")
    if path.exists() and path.suffix != ".json":
        raise ValueError(f"{path}: already exists; choose another name, or one that ends in .json")
    messages = chat.export()
    write_json(path, messages)
    tell(f"{path}: {len(messages)} messages")


def read_line():
    """A line from the terminal, where it can be edited, or from a pipe; "" at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("> ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return ""
        except KeyboardInterrupt:
            tell("\n(an empty line or Ctrl-D ends)")


@contextlib.contextmanager
def lines_kept():
    """Keeps the typed lines for the arrow keys, also for the next conversation."""
    try:
        import readline
    except ImportError:  # not on Windows
        yield
        return
    from ..modeling_minigpt4.parts import cache_dir

    path = cache_dir() / "chat_history"
    if not sys.stdin.isatty():
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(_HISTORY_LENGTH)
            readline.write_history_file(path)
