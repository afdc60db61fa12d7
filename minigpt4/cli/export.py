"""Write a model as a folder that transformers and the Hub load without this package; `--push` also uploads it."""

from pathlib import Path

from . import loading


def add_arguments(parser):
    """Adds the arguments of `minigpt4 export` and trainer_scripts/push_to_hub.py."""
    parser.add_argument("--model", required=True, metavar="embedded|DIR|ID", help="the model to export")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or an earlier export to replace")
    parser.add_argument("--light", action="store_true", help="store only the trained weights, not the frozen parts")
    parser.add_argument(
        "--examples",
        nargs="*",
        metavar="FILE",
        help="images to show in the model card, with the model's descriptions; no FILE: none "
        "(default: random photographs from scikit-image, if it is installed)",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="FILE",
        help="results.json of `minigpt4 evaluate` on this model for the card's metrics (default: its evaluation.json)",
    )
    parser.add_argument(
        "--benchmark",
        nargs=3,
        action="append",
        default=[],
        metavar=("DATASET", "TASK", "METRIC"),
        help="one of these metrics, by the name that the card gives it, as the result of a benchmark that the Hub has "
        "registered: the data set's id (ID@REVISION) and its task; may be repeated",
    )
    parser.add_argument(
        "--gguf",
        action="store_true",
        help="write model.gguf and mmproj.gguf for llama.cpp, instead of a transformers folder",
    )
    parser.add_argument("--push", metavar="REPO", help="upload it to this Hub repository in one commit")
    parser.add_argument("--private", action="store_true", help="with --push: make the repository private")
    loading.add_arguments(parser, quantized=False)


def run(arguments):
    """Exports, and prints the folder; raises ValueError or OSError with one line."""
    if arguments.private and not arguments.push:
        raise ValueError("--private applies to the repository that --push uploads to; add --push REPO")
    if arguments.gguf:
        return _export_gguf(arguments)
    from ..hub import export as hub_folder
    from ..hub.run_records import benchmark_entries, evaluation_results, training_runs
    from ..inference.named_models import fingerprint

    hub_folder.check_target(arguments.output)
    for file in arguments.results or []:
        evaluation_results(file)  # checks the file before the model is loaded, which takes time
    training, examples = training_runs(arguments.model), _examples(arguments.examples)
    model, processor = loading.load_model(arguments)
    card_data = _card_data(arguments.model, arguments.results, fingerprint(model))
    benchmarks, card_data["eval_results"] = benchmark_entries(card_data.get("eval_results"), arguments.benchmark)
    if arguments.light:
        hub_folder.check_light(model)
    repo_id = arguments.push and hub_folder.create_repository(arguments.push, private=arguments.private)
    directory = hub_folder.export(
        model, processor, arguments.output, arguments.light, card_data, repo_id, examples, training, benchmarks=benchmarks
    )
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6
    print(f"{arguments.output}: {'trained weights only' if arguments.light else 'every weight'}, {size:.1f} MB")
    if repo_id:
        print(f"pushed to {hub_folder.push(directory, repo_id).commit_url}")


def _export_gguf(arguments):
    for flag in ("light", "examples", "results", "benchmark", "push"):
        if getattr(arguments, flag) not in (None, False, []):
            raise ValueError(f"--{flag} is for a transformers folder, and --gguf writes two other files; leave one out")
    from ..hub import gguf_export
    from ..inference.named_models import load_config

    gguf_export.check(load_config(arguments.model))  # before the weights are loaded
    model, processor = loading.load_model(arguments)
    for path in gguf_export.export(model, processor, arguments.output):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _card_data(name, results, weights):
    """The metadata of the model's own README.md, which also applies to its export, and these weights' newest scores."""
    from ..hub.model_card import as_dict
    from ..hub.run_records import evaluation_file, evaluation_results

    path, data = Path(name) / "README.md", {}
    if path.is_file():
        from huggingface_hub import ModelCard

        data = as_dict(ModelCard.load(path).data)
    if files := results or [file for file in [evaluation_file(name)] if file]:
        data["eval_results"] = [result for file in files for result in evaluation_results(file, weights)]
    return data


def _examples(files):
    """The `Example`s to show: those named on the command line, or by default a random few of scikit-image's."""
    from ..hub.model_card import Example
    from ..processing.image_processing_minigpt4 import load_image

    if files is not None:
        return [Example(Path(file).stem, load_image(file)) for file in files]
    from ..processing.data.photographs import FREE, drawn, photograph

    try:
        return [Example(name, photograph(name), FREE[name]) for name in drawn()]
    except ModuleNotFoundError:
        return []
