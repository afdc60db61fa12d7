"""accelerate launch trainer_scripts/curate.py generate --store curation.sqlite --model outputs/stage1/model

The curation of stage-2 data (paper, section 3.2): `minigpt4 curate`, as a script, so that `accelerate launch` can spread
the generation over several devices. `python trainer_scripts/curate.py --help` lists the steps.
"""

import argparse
import sys

from minigpt4.cli import curate, run_reporting_errors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    curate.add_arguments(parser)
    arguments = parser.parse_args()
    sys.exit(run_reporting_errors(lambda: curate.run(arguments), "curate"))
