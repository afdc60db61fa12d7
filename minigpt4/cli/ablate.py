"""Train and measure the paper's ablations on the embedded default, next to the paper's figures."""


def add_arguments(parser):
    """Adds the arguments of `minigpt4 ablate`."""
    parser.add_argument(
        "--output",
        default="outputs/ablations",
        metavar="FOLDER",
        help="default: outputs/ablations; existing rows are kept",
    )
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="target time for all rows (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="only these rows: default, qformer, lora, ...")


def run(arguments):
    """Runs the ablations and prints the table."""
    if not 0 < arguments.minutes <= 6000:
        raise ValueError(f"--minutes is {arguments.minutes:g}; expected more than 0 and at most 6000")
    if not 0 <= arguments.seed < 2**32 - 1:
        raise ValueError(f"--seed is {arguments.seed}; expected 0 to {2**32 - 2}")
    from ..experiments.ablations import Settings, ablate, table

    settings = Settings.in_minutes(arguments.minutes, arguments.seed)
    results = ablate(arguments.output, settings, arguments.only)
    print(f"\n{table(results)}\n{arguments.output}/results.json, table.md, ablations.png")
