"""Checks a folder of training data: what cannot be used and why, lengths of captions, and whether decoding keeps up."""


def add_arguments(parser):
    """Adds the arguments of `minigpt4 data`."""
    parser.add_argument("action", choices=("check",), help="check: read it as training would")
    parser.add_argument("path", metavar="FOLDER", help="as in a recipe's data.path: a folder, a glob, or a Hub data set")
    parser.add_argument("--samples", type=int, metavar="N", help="check this many, spread over the shards (default: all)")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="pixels that the model sees (default: 224)")
    parser.add_argument(
        "--eats", type=int, default=200, metavar="N", help="images per second that one GPU trains on (default: 200)"
    )
    for name in ("subset", "split", "image-column", "text-column"):
        parser.add_argument(
            f"--{name}", default="train" if name == "split" else "", help=f"as data.{name.replace('-', '_')}"
        )


def run(arguments):
    """Prints what it finds; raises ValueError if more than 1% cannot be used, which would also stop training."""
    from ..configuration.recipe import SourceSection
    from ..training.data_check import check, report

    for name in ("samples", "image_size", "eats"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected 1 or more")
    names = ("path", "subset", "split", "image_column", "text_column")
    section = SourceSection(**{name: getattr(arguments, name) for name in names})
    found = check(section, arguments.image_size, arguments.samples)
    for line in report(found, arguments.eats):
        print(line)
    found.dropped.check()
