"""accelerate launch trainer_scripts/evaluate.py --model outputs/quickstart/model --suite composed

Measures a model on one suite, on as many devices as accelerate starts: `minigpt4 evaluate`, as a script. A
stopped run continues where it was.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for modules beside a script first, and there this file would hide the package `evaluate`.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    from minigpt4.cli import evaluate, run_reporting_errors

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    evaluate.add_arguments(parser)
    arguments = parser.parse_args()
    sys.exit(run_reporting_errors(lambda: evaluate.run(arguments), "evaluate"))
