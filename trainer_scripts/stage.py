"""What stage1.py and stage2.py share: arguments, recipe, training, one-line errors."""

import argparse
import os

from minigpt4.cli import run_reporting_errors
from minigpt4.training.global_batch import take_part


def main(default_recipe, stage, doc, own_data_recipe=None):
    """Parses the command line and trains the recipe; returns the exit status (2: bad input, 130 and 143: stopped).

    Without --recipe it is the default one, or `own_data_recipe` where --set names a data.path.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    own_data_recipe = own_data_recipe or default_recipe
    by_default = (
        f"{default_recipe}, or {own_data_recipe} with a data.path" if own_data_recipe != default_recipe else default_recipe
    )
    parser.add_argument("--recipe", help=f"YAML file or the name of one that ships (default: {by_default})")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change single fields of the recipe"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="continue an unfinished run (auto), or start over (never)",
    )
    arguments = parser.parse_args()
    if arguments.recipe is None:
        own_data = any(setting.startswith("data.path=") for setting in arguments.set)
        arguments.recipe = own_data_recipe if own_data else default_recipe
    return run_reporting_errors(lambda: _train(arguments, stage), f"stage{stage}")


def _train(arguments, stage):
    from minigpt4.configuration.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.set)
    if recipe.stage != stage:
        raise ValueError(f"{arguments.recipe}: is a stage-{recipe.stage} recipe; run trainer_scripts/stage{recipe.stage}.py")
    if not take_part(recipe.train.processes):
        return
    from minigpt4.training.run import train

    _, _, summary = train(recipe, resume=arguments.resume == "auto")
    if int(os.environ.get("RANK", "0")):  # accelerate runs this file once for each process
        return
    loss = f"loss {summary['first_loss']:.3f} -> {summary['last_loss']:.3f}"
    print(f"{loss} in {summary['seconds']:.0f} s; {recipe.output}/model")
    print(f"next: minigpt4 chat --model {recipe.output}/model --image FILE")
