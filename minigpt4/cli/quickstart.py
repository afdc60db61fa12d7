"""Train a real MiniGPT-4 from a new projection through both stages, in 15 to 35 minutes on two CPU cores."""


def add_arguments(parser):
    """Adds the arguments of `minigpt4 quickstart`."""
    parser.add_argument("--output", default="outputs/quickstart", metavar="FOLDER", help="default: outputs/quickstart")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="total minutes to take on this machine (default: as long as the recipes take, which is measured first)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def run(arguments):
    """Runs the quickstart and prints what to type next."""
    if arguments.minutes is not None and not 0 < arguments.minutes <= 600:
        raise ValueError(f"--minutes is {arguments.minutes:g}; expected more than 0 and at most 600")
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"--seed is {arguments.seed}; expected 0 to {2**32 - 1}")
    from ..experiments.quickstart import quickstart

    summary = quickstart(arguments.output, arguments.minutes, arguments.seed)
    print(
        f"""
{told(summary)}

{arguments.output}/report.html shows images, truth and answers. Next:
  minigpt4 chat --model {arguments.output}/model --image FILE
  minigpt4 chat --image PHOTO --ask "Describe this image in detail."     (the shipped model)"""
    )


def told(summary):
    """The results of a run, from its summary.json, in four lines."""
    first, before, after = summary["stage1"], summary["before_stage2"], summary["stage2"]
    trained, whole = summary["train_seconds"] / 60, summary["total_seconds"] / 60
    return f"""\
held-out scenes     captions name {first["object_recall"]:.0%} of the objects, {first["caption_exact"]:.0%} are exact
                    (with shuffled images: {first["object_recall_shuffled"]:.0%} of the objects)
questions           {before["questions_right"]:.0%} right before stage 2, {after["questions_right"]:.0%} after
descriptions        name {after["description_recall"]:.0%} of the objects, {after["failures"]:.1%} of all answers fail
cost                {trained:.1f} min of training, {whole:.1f} min in all, {summary["peak_rss_mb"] / 1000:.1f} GB"""
