"""python trainer_scripts/push_to_hub.py --model outputs/quickstart/model --output outputs/export --push NAME/minigpt4-mine

Writes a model as a Hub folder and uploads it in one commit: `minigpt4 export`, as a script. `hf auth login` comes first.
"""

import argparse
import sys

from minigpt4.cli import export, run_reporting_errors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    export.add_arguments(parser)
    arguments = parser.parse_args()
    sys.exit(run_reporting_errors(lambda: export.run(arguments), "push_to_hub"))
