"""The command `minigpt4`: one module per subcommand, each with `add_arguments(parser)` and `run(arguments)`.

Subcommands import torch only when they run, not for `--help`. Bad input gives one line and exit status 2, Ctrl-C 130.
"""

import argparse
import importlib
import logging
import signal
import sys

import minigpt4

COMMANDS = {
    "quickstart": "train the embedded default on composed scenes, in both stages, and report what it learned",
    "chat": "ask about pictures",
    "web": "talk about pictures in the browser",
    "serve": "answer over HTTP, as OpenAI's API does",
    "caption": "describe every picture in a folder",
    "evaluate": "measure a model: failures, captions, questions, composed scenes; figures, intervals and a report",
    "ablate": "train and measure the paper's ablations on the embedded default",
    "build": "put a vision tower and an LLM together, for stage 1",
    "export": "write a model as a folder for the Hub",
    "convert": "turn the authors' published files into a model folder",
    "data": "check training data: faults, captions, and how fast they decode",
    "curate": "make a stage-2 data set of pictures: describe, fix, filter, verify, publish",
    "memory": "how much memory a model takes, before it is downloaded",
    "doctor": "what is installed here, and what works",
}


def main(argv=None):
    """Runs a subcommand; returns its exit status."""
    parser = argparse.ArgumentParser(prog="minigpt4", description=minigpt4.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=minigpt4.__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"minigpt4.cli.{name}")
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    arguments, arguments.passed_on = parser.parse_known_args(argv)
    if arguments.passed_on and arguments.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(arguments.passed_on)}")
    return run_reporting_errors(lambda: arguments.run(arguments), f"minigpt4 {arguments.command}")


def run_reporting_errors(run, name):
    """Calls run() and turns errors that a user can fix into one line on stderr and an exit status.

    Returns 0; 2 after a ValueError, an OSError or a missing package; 130 after Ctrl-C; 143 after SIGTERM.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # On a CPU with AVX512-BF16, importing bitsandbytes warns that the package `kernels` (faster 4-bit layers) is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        run()
    except (ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"{name}: {lines[0]}", file=sys.stderr)
        return 2
    except ImportError as error:
        extras = "pip install -e '.[embedded,quickstart,metrics,peft,web,curation,serving]'"
        print(f"{name}: {str(error).strip().splitlines()[0]}; run `{extras}` in the clone", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130
    return 0
