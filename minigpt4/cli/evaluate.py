"""Measure a model: predictions, figures with 95% intervals and a report, for one suite of questions."""

from . import loading

# The suites of minigpt4/evaluation/suites, repeated here so that --help does not import torch.
SUITES = (
    "failures",
    "coverage",
    "captions",
    "chair",
    "pope",
    "vqa",
    "advanced",
    "composed",
    "objects",
    "text",
    "spatial",
    "abilities",
)


def add_arguments(parser):
    """Adds the arguments of `minigpt4 evaluate` and trainer_scripts/evaluate.py."""
    parser.add_argument("--model", required=True, metavar="embedded|DIR|ID", help="the model to measure")
    parser.add_argument("--suite", required=True, choices=SUITES, help="what to measure")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE|DIR|ID",
        help="the benchmark's own files, a folder of them, or a data set on the Hub (advanced: a folder of images; "
        "failures: a folder of images or tar shards; objects: COCO's instances or tar shards; without it, failures "
        "and composed take composed scenes)",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="where the images are (default: images/ beside the data, or that folder itself)"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="a folder to write to, or to continue (default: outputs/evaluation/SUITE)"
    )
    parser.add_argument("--against", metavar="DIR|MODEL", help="an earlier evaluation, or a model, to compare with")
    parser.add_argument("--limit", type=int, metavar="N", help="ask about this many images, drawn at random")
    parser.add_argument(
        "--holdout-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="for tar shards: only the images that training with this data.holdout_share left out",
    )
    parser.add_argument("--seed", type=int, default=0, help="for that draw and for composed scenes (default: 0)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the suite's)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="answers at a time (default: 64)")
    parser.add_argument(
        "--judge",
        metavar="URL|FILE",
        help="coverage, advanced, abilities: an OpenAI-compatible endpoint (http://localhost:8000/v1; its key in "
        "OPENAI_API_KEY), or, for the last two, the judgements of a person, as judge.html saves them",
    )
    parser.add_argument("--judge-model", metavar="NAME", help="the judge's name at the endpoint")
    loading.add_arguments(parser)


def run(arguments):
    """Evaluates, and prints every figure; raises ValueError or OSError with one line."""
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size is {arguments.batch_size}; expected 1 or more")
    from ..evaluation.judge import judge_of
    from ..evaluation.runner import evaluate
    from ..evaluation.suites import Options, load_suite

    options = Options(
        tuple(arguments.data),
        arguments.images,
        arguments.limit,
        arguments.seed,
        arguments.max_new_tokens,
        arguments.holdout_share,
    )
    suite = load_suite(arguments.suite, options)
    suite.judged = suite.judged or bool(arguments.judge and suite.by_person)
    if arguments.judge and not suite.judged:
        raise ValueError(f"--judge: suite {suite.name} needs none; leave it out")
    if suite.judged and not suite.by_person and not str(arguments.judge).startswith(("http://", "https://")):
        raise ValueError(
            f"suite {suite.name} needs --judge, the URL of an OpenAI-compatible endpoint; found {arguments.judge}"
        )
    judge = judge_of(arguments.judge, arguments.judge_model) if arguments.judge else None
    output = arguments.output or f"outputs/evaluation/{suite.name}"
    results = evaluate(
        arguments.model, suite, output, judge, arguments.against, arguments.batch_size, **loading.given(arguments)
    )
    if results is not None:
        print_results(results, output)


def print_results(results, output):
    """One line per figure."""
    print(f"{results['suite']} of {results['model']}: {results['data']}, {results['n']} pictures")
    for way, figures in results["scores"].items():
        for name, figure in figures.items():
            if figure["value"] is not None:
                low, high = figure["interval"]
                told = f"{figure['value']:8.3f}  ({low:.3f} to {high:.3f}, n {figure['n']})"
                print(f"  {way + ': ' + name.replace('_', ' '):58}{told}")
    if results.get("unjudged"):
        print(f"  {results['unjudged']} of {results['requests']} answers are unjudged and count as wrong")
    print(f"{output}/report.html")
