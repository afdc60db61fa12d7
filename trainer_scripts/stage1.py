# /// script
# requires-python = ">=3.11"
# dependencies = ["minigpt4-hf[quickstart,llama]"]
# ///
"""accelerate launch trainer_scripts/stage1.py [--recipe YAML] [--set key=value ...]

Stage 1 (paper, section 3.1): the projection learns to make a frozen LLM caption images, without a prompt. Without
--recipe it trains the embedded default on composed scenes: about seven minutes on two CPU cores.
"""

import sys

from minigpt4.trainer_scripts.stage import main

if __name__ == "__main__":
    sys.exit(main(default_recipe="stage1-embedded", stage=1, doc=__doc__))
