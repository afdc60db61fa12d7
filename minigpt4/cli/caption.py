"""Describe every image in a folder, and continue where a stopped run left off."""

from . import loading


def add_arguments(parser):
    """Adds the arguments of `minigpt4 caption`."""
    parser.add_argument("folder", metavar="FOLDER", help="a folder of images, including its subfolders")
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="one line per image; continues an old file")
    parser.add_argument("--model", default="embedded", help='"embedded" (the default), a folder, or a Hub id')
    parser.add_argument("--prompt", default="Describe this image in detail.", metavar="TEXT", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    parser.add_argument("--max-new-tokens", type=int, default=120, metavar="N", help="longest description (default: 120)")
    loading.add_arguments(parser)


def run(arguments):
    """Writes the missing descriptions, and prints how many there are."""
    for name in ("batch_size", "max_new_tokens"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more")
    if not arguments.prompt.strip():
        raise ValueError("--prompt is empty; expected a question")
    from transformers.utils import logging

    from ..inference.captioning import caption_folder, find_pictures, finished_lines

    labels = {"model": arguments.model, "prompt": arguments.prompt}
    names = find_pictures(arguments.folder)
    before = finished_lines(arguments.output, labels)
    missing = [name for name in names if name not in before]
    if missing:
        logging.disable_progress_bar()
        model, processor = loading.load_model(arguments)
        sizes = (arguments.batch_size, arguments.max_new_tokens)
        caption_folder(model, processor, arguments.folder, missing, arguments.output, labels, *sizes, len(before))
    lines = finished_lines(arguments.output, labels)
    broken = sum("error" in line for line in lines.values())
    print(f"{arguments.output}: {len(lines) - broken} described, {broken} could not be read, {len(before)} of them before")
