# /// script
# requires-python = ">=3.11"
# dependencies = ["minigpt4-hf[quickstart,llama]"]
# ///
"""accelerate launch trainer_scripts/stage2.py [--recipe YAML] [--set key=value ...]

Stage 2 (paper, section 3.3): the projection learns to answer instructions in the LLM's own conversation form, loss on the
answer only. Without --recipe it continues from stage 1's output on composed scenes: about seven minutes on two CPU cores.
With `--set data.path=FOLDER` it trains the projection that ships on your own images, and ends with a page to compare.
"""

import sys

from minigpt4.trainer_scripts.stage import main

if __name__ == "__main__":
    sys.exit(main(default_recipe="stage2-embedded", stage=2, doc=__doc__, own_data_recipe="stage2-own-pictures"))
