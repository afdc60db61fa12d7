"""Writes a model as a folder that transformers and the Hub load without this package; `--push` uploads it, too."""

from pathlib import Path


def add_arguments(parser):
    """Adds what `minigpt4 export` and trainer_scripts/push_to_hub.py take."""
    parser.add_argument("--model", required=True, metavar="embedded|DIR|ID", help="the model to export")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or an earlier export to replace")
    parser.add_argument("--light", action="store_true", help="store the trained weights only, not the frozen parts")
    parser.add_argument("--push", metavar="REPO", help="upload it to this Hub repository in one commit")
    parser.add_argument("--private", action="store_true", help="with --push: the repository is a private one")


def run(arguments):
    """Exports, and prints where to; raises ValueError or OSError with one line."""
    if arguments.private and not arguments.push:
        raise ValueError("--private is about the repository that --push uploads to; add --push REPO")
    from ..modeling_minigpt4 import export as hub_folder
    from ..models import load

    hub_folder.check_target(arguments.output)
    model, processor = load(arguments.model)
    if arguments.light:
        hub_folder.check_light(model)
    repo_id = arguments.push and hub_folder.create_repository(arguments.push, private=arguments.private)
    directory = hub_folder.export(model, processor, arguments.output, arguments.light, _card_data(arguments.model), repo_id)
    size = sum(path.stat().st_size for path in directory.iterdir()) / 1e6
    print(f"{arguments.output}: {'trained weights only' if arguments.light else 'every weight'}, {size:.1f} MB")
    if repo_id:
        print(f"pushed to {hub_folder.push(directory, repo_id)}")


def _card_data(name):
    """The metadata of the model's own README.md (datasets, results): they hold for its export, too. None without one."""
    path = Path(name) / "README.md"
    if not path.is_file():
        return None
    from huggingface_hub import ModelCard

    return ModelCard.load(path).data
