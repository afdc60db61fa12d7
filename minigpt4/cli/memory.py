"""Show how much memory a model takes, computed from its config; nothing else is downloaded."""

_TOKENS = 1000


def add_arguments(parser):
    """Adds the arguments of `minigpt4 memory`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--model",
        metavar="M",
        help='"embedded", "vicuna-7b", "vicuna-13b", "llama2-7b-chat", a folder, or a Hub id',
    )
    which.add_argument("--recipe", metavar="R", help="a recipe, to show what its training takes on a device")


def run(arguments):
    """Prints a table: weights, keys and values of 1000 tokens, one image, for each precision; or that of a recipe."""
    if arguments.recipe:
        return print_training(arguments.recipe)
    from ..inference.memory import PRECISIONS, cache_bytes, empty_model, parameters_by_part, picture_bytes, weight_bytes

    config = read_config(arguments.model)
    model = empty_model(config)
    sizes = {
        "weights": [weight_bytes(model, precision) for precision in PRECISIONS],
        f"{_TOKENS} tokens in the cache": [cache_bytes(config, _TOKENS, precision) for precision in PRECISIONS],
        "a picture, while it is encoded": [picture_bytes(model, precision) for precision in PRECISIONS],
    }
    sizes["in all"] = [sum(column) for column in zip(*sizes.values(), strict=True)]
    parts = {part: number for part, number in parameters_by_part(model).items() if number}
    print(f"{arguments.model}: {_millions(sum(parts.values()))} parameters")
    for part, number in parts.items():
        print(f"  {part:<30}{_millions(number):>12}")
    print(f"{'':<32}" + "".join(f"{precision:>12}" for precision in PRECISIONS))
    for name, row in sizes.items():
        print(f"  {name:<30}" + "".join(f"{_gigabytes(size):>12}" for size in row))
    print(f"A picture is {config.num_image_tokens} tokens. A GB is 10^9 bytes; PyTorch itself and CUDA come on top.")


def print_training(name):
    """Prints what the training of a recipe takes; raises ValueError or OSError."""
    from ..configuration.recipe import load_recipe
    from ..inference.memory import training_bytes
    from ..training.global_batch import share_batch

    recipe = share_batch(load_recipe(name), 1)
    sizes = training_bytes(recipe_config(recipe.model), recipe)
    labels = {"weights": "weights", "trained": "gradients and Adam's moments", "a step": "activations of a step, at most"}
    print(f"{name}: stage {recipe.stage}, {recipe.train.batch_size} examples a device at a time")
    for part, size in {**{labels[part]: size for part, size in sizes.items()}, "in all": sum(sizes.values())}.items():
        print(f"  {part:<32}{_gigabytes(size):>10}")
    print("A GB is 10^9 bytes; PyTorch itself and CUDA, about one more, come on top.")


def recipe_config(section):
    """The config of the model in a recipe's model section; only the config.json of its parts is read."""
    from ..hub.from_parts import config_of_parts
    from ..training.run import part_fields

    if not section.text:
        return read_config(section.base)
    parts = {} if section.qformer else {"qformer": None}
    return config_of_parts(section.vision, section.text, **parts, **part_fields(section))


def read_config(name):
    """The config of a preset, of the embedded default, of a folder or of a Hub id; raises ValueError or OSError."""
    from .. import MiniGPT4Config
    from ..configuration.presets import PRESETS
    from ..inference.named_models import load_config

    return MiniGPT4Config.preset(name) if name in PRESETS else load_config(name)


def _millions(number):
    return f"{number / 1e6:,.1f} M"


def _gigabytes(size):
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
