"""From a stage-1 model and images to a verified, published stage-2 data set: the paper's section 3.2, step by step.

Steps: sample, generate, fix, filter, verify, publish; one, or several in a row. Each does only what the
store lacks, so the same command continues after a stop. Without a step, the store's counts are printed.

Preferences for less invention, to train with DPO: sample, pairs, judge, publish --layout preferences.
"""

import contextlib
import os

from . import loading

STEPS = ("sample", "generate", "fix", "filter", "verify", "pairs", "judge", "publish")


def add_arguments(parser):
    """Adds the arguments of `minigpt4 curate`, a group for each step."""
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"any of: {', '.join(STEPS)}")
    parser.add_argument("--store", metavar="FILE", help="the curation store, an SQLite file; `sample` creates it")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for the draw and for sampling (default: 0)")

    demo = parser.add_argument_group("demo")
    demo.add_argument("--demo", action="store_true", help="the whole pipeline on composed scenes, only on this machine")

    group = parser.add_argument_group("sample")
    group.add_argument("--pictures", metavar="SOURCE", help="a folder of images, or webdataset shards")
    group.add_argument("--count", type=int, metavar="N", help="how many to draw (default: 5000; the demo: 80)")

    group = parser.add_argument_group("generate and pairs")
    group.add_argument("--model", metavar="embedded|DIR|ID", help="the stage-1 model; for pairs the one to be trained "
                       "with them; with --model-url its name there")  # fmt: skip
    group.add_argument("--model-url", metavar="URL", help="generate: an OpenAI-compatible server that serves the model")
    group.add_argument("--model-key-env", default="", metavar="NAME", help="environment variable with its key")
    group.add_argument("--form", choices=("chat", "caption"), default="chat", help="ask as the paper does (chat), or let a "
                       "small LLM caption first, as in stage 1 (caption)")  # fmt: skip
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    group.add_argument("--max-new-tokens", type=int, default=300, metavar="N", help="longest answer (default: 300)")
    group.add_argument(
        "--temperature", type=float, metavar="X", help="0: greedy (default: what the model's own settings say; pairs: 1)"
    )

    loading.add_arguments(parser)

    group = parser.add_argument_group("fix and judge")
    for name, what in (("fixer", "the LLM that repairs texts"), ("judge", "the LLM that sees images and compares answers")):
        group.add_argument(f"--{name}", metavar="NAME", help=f"{what}, as its server calls it")
        group.add_argument(f"--{name}-url", metavar="URL", help="an OpenAI-compatible server (default: OpenAI's)")
        group.add_argument(f"--{name}-temperature", type=float, metavar="X", help="default: the server's own")
    group.add_argument(
        "--key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with the key (default: OPENAI_API_KEY)"
    )
    group.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: 8)")
    group.add_argument("--retries", type=int, default=5, metavar="N", help="per request (default: 5)")
    group.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds per request (default: 120)")
    group.add_argument("--price", type=float, nargs=2, default=(0, 0), metavar=("IN", "OUT"), help="per million tokens")
    group.add_argument("--dry-run", action="store_true", help="print what would be sent, and an estimate; send nothing")

    group = parser.add_argument_group("filter")
    group.add_argument("--min-words", type=int, default=20, metavar="N", help="a shorter text is rejected (default: 20)")
    group.add_argument("--scorer", metavar="DIR|ID", help="a CLIP or SigLIP that rejects texts unlike their images")
    group.add_argument("--min-score", type=float, default=0.2, metavar="X", help="for the scorer (default: 0.2)")

    group = parser.add_argument_group("verify")
    group.add_argument("--decisions", metavar="FILE", help="JSONL file of decisions, read at the start, then appended to")
    group.add_argument("--no-page", action="store_true", help="read the decisions file and end; no web page")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="for the page (default: 127.0.0.1, only this machine)"
    )
    group.add_argument("--port", type=int, default=7860, metavar="N", help="for the page (default: 7860)")

    group = parser.add_argument_group("publish")
    group.add_argument("--output", metavar="DIR", help="the folder to publish to; the demo's (outputs/curation)")
    group.add_argument("--layout", choices=("datasets", "cc_sbu_align", "preferences"), default="datasets", help="texts for "
                       "the Hub (datasets, the default) or as in the original, or what the judge preferred")  # fmt: skip
    group.add_argument("--validation", type=float, default=0.05, metavar="X", help="share of the images (default: 0.05)")
    group.add_argument("--license", metavar="ID", help="of the images, for the card, for example cc-by-4.0")
    group.add_argument("--credit", default="", metavar="TEXT", help="whose images they are, for the card")
    group.add_argument("--push", metavar="REPO", help="upload the folder to this data-set repository of the Hub")
    group.add_argument("--private", action="store_true", help="with --push: a private one")


def run(arguments):
    """Runs the steps in order, and prints a line on each."""
    if arguments.demo:
        return _demo(arguments)
    _check(arguments)
    from ..curation.store import Store

    steps = dict(zip(STEPS, (_sample, _generate, _fix, _filter, _verify, _pairs, _judge, _publish), strict=True))
    first = int(os.environ.get("RANK", "0")) == 0  # among the processes of `accelerate launch`
    with Store(arguments.store, create="sample" in arguments.steps) as store:
        if not arguments.steps:
            print("\n".join(f"{step:<9}{store.count(step):>9,} done" for step in STEPS[:-1]))
        for step in arguments.steps:
            if first or step in ("generate", "pairs"):  # the others have nothing to compute
                with store.only_one(step) if first else contextlib.nullcontext():
                    print(steps[step](store, arguments))


def _check(arguments):
    """Checks the arguments before anything is done."""
    unknown = [step for step in arguments.steps if step not in STEPS]
    if unknown:
        raise ValueError(f"{unknown[0]}: no such step; expected any of {', '.join(STEPS)}")
    if not arguments.store:
        raise ValueError("--store is missing; expected the file of a curation store")
    needed = {"sample": ["pictures"], "generate": ["model"], "fix": ["fixer"], "publish": ["output"]}
    needed |= {"pairs": ["model"], "judge": ["judge"]}
    for step in arguments.steps:
        for name in needed.get(step, []):
            if not getattr(arguments, name):
                raise ValueError(f"{step} needs --{name}; see minigpt4 curate --help")
    for name, least in {
        "count": 1,
        "batch_size": 1,
        "max_new_tokens": 1,
        "concurrency": 1,
        "retries": 0,
        "min_words": 0,
    }.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")
    if arguments.dry_run and arguments.steps not in (["fix"], ["judge"]):
        raise ValueError("--dry-run takes only fix or only judge; the other steps would run")
    if "pairs" in arguments.steps:
        _check_pairs(arguments)
    if arguments.no_page and not arguments.decisions:
        raise ValueError("--no-page reads a decisions file and ends; add --decisions FILE")
    if not 0 <= arguments.validation < 1:
        raise ValueError(f"--validation is {arguments.validation:g}; expected 0 or more and less than 1")
    if arguments.private and not arguments.push:
        raise ValueError("--private applies to the repository that --push uploads to; add --push REPO")


def _check_pairs(arguments):
    if arguments.temperature is not None and arguments.temperature <= 0:
        raise ValueError(f"--temperature is {arguments.temperature:g}; pairs needs more than 0, so that two answers differ")
    if arguments.model_url:
        raise ValueError("--model-url is only for generate; pairs samples from a model on this machine")


def _demo(arguments):
    if arguments.steps or arguments.store:
        raise ValueError("--demo runs every step on its own store; leave out the steps and --store")
    if arguments.count is not None and arguments.count < 10:
        raise ValueError(f"--count is {arguments.count}; expected 10 or more, so that some are left to publish")
    from ..curation.demo import COUNT, STAGE1, demo

    output = arguments.output or "outputs/curation"
    summary = demo(output, arguments.model or STAGE1, arguments.count or COUNT, arguments.seed)
    before, after = summary["before_stage2"], summary["after_stage2"]
    print(
        f"""
images              {summary["pictures"]} drawn, {summary["published"]} published ({summary["survived"]:.0%})
answers that fail   {before["failures"]:.0%} before stage 2 on this set, {after["failures"]:.0%} after
objects named       {before["objects_named"]:.0%} before, {after["objects_named"]:.0%} after
cost                {summary["seconds"]["all"] / 60:.1f} min

{output}/set is the data set, {output}/stage2/model the model. Next:
  minigpt4 curate verify --store {output}/curation.sqlite        (see the images and texts)
  minigpt4 chat --model {output}/stage2/model --image {output}/pictures/00000.png"""
    )


def _sample(store, arguments):
    from ..curation.sample import sample

    return sample(store, arguments.pictures, arguments.count or 5000, arguments.seed)


def _generate(store, arguments):
    from ..curation.generate import Describer, generate, generate_by_server

    if arguments.model_url:
        endpoint = _endpoint(arguments, arguments.model, arguments.model_url, arguments.model_key_env)
        return generate_by_server(store, endpoint, arguments.max_new_tokens, arguments.temperature, arguments.seed)
    decoding = {"max_new_tokens": arguments.max_new_tokens}
    if arguments.temperature is not None:
        decoding |= {"do_sample": arguments.temperature > 0}
        decoding |= {"temperature": arguments.temperature} if arguments.temperature > 0 else {}
    with _model_of_all(arguments) as (model, processor):
        describer = Describer(model, processor, arguments.model, arguments.form, **decoding)
        return generate(store, describer, arguments.batch_size, arguments.seed)


@contextlib.contextmanager
def _model_of_all(arguments):
    """The model and its processor in each process of `accelerate launch`, on its device."""
    from accelerate import PartialState

    from ..inference.devices import find_device
    from ..inference.named_models import load

    place = find_device(arguments.device)
    state = PartialState(cpu=place.type == "cpu")  # on a CPU the processes communicate over gloo
    place = place if state.num_processes == 1 else state.device
    loaded = load(arguments.model, **{**loading.given(arguments), "device": place})
    state.wait_for_everyone()  # until the first process has sampled, and until all have answered
    yield loaded
    state.wait_for_everyone()


def _fix(store, arguments):
    from ..curation import fix

    asked = arguments.fixer, arguments.fixer_url, arguments.fixer_temperature
    return _ask_endpoint(store, arguments, fix.fix, fix.dry_run, *asked)


def _pairs(store, arguments):
    from ..curation.pairs import Sampler, sample_pairs

    temperature = 1.0 if arguments.temperature is None else arguments.temperature
    with _model_of_all(arguments) as (model, processor):
        decoding = {"max_new_tokens": arguments.max_new_tokens}
        sampler = Sampler(model, processor, arguments.model, temperature, **decoding)
        return sample_pairs(store, sampler, arguments.batch_size, arguments.seed)


def _judge(store, arguments):
    from ..curation import judge

    asked = arguments.judge, arguments.judge_url, arguments.judge_temperature
    return _ask_endpoint(store, arguments, judge.judge, judge.dry_run, *asked)


def _ask_endpoint(store, arguments, run, dry_run, model, url, temperature):
    """A step that asks a model behind an endpoint, OpenAI's by default, or with --dry-run what it would cost."""
    from ..curation.endpoint import OPENAI

    url = url or OPENAI
    if arguments.dry_run:
        return dry_run(store, model, url, arguments.price)
    return run(store, _endpoint(arguments, model, url, arguments.key_env), temperature, prices=arguments.price)


def _filter(store, arguments):
    from ..curation.filter import Scorer, filter_texts

    scorer = Scorer(arguments.scorer) if arguments.scorer else None
    return filter_texts(store, arguments.min_words, scorer=scorer, min_score=arguments.min_score)


def _verify(store, arguments):
    from ..curation.verify import DecisionsFile, Desk

    file = DecisionsFile(arguments.decisions) if arguments.decisions else None
    if file:
        report = file.load(store)
        if arguments.no_page:
            return report
        print(report)
    from ..curation.page import serve

    return serve(Desk(store, file), arguments.host, arguments.port)


def _publish(store, arguments):
    from ..curation.publish import publish, push

    name = (arguments.push or arguments.output).rstrip("/").rpartition("/")[2]
    told = {"name": name, "license": arguments.license, "credit": arguments.credit}
    report = publish(store, arguments.output, arguments.layout, arguments.validation, **told)
    if arguments.push:
        return f"{report}\npushed to {push(arguments.output, arguments.push, arguments.private)}"
    return f"{report}; in {arguments.output}"


def _endpoint(arguments, model, url, key_variable):
    from ..curation.endpoint import Endpoint

    return Endpoint(model, url, key_variable, arguments.concurrency, arguments.retries, arguments.timeout)
