"""`python -m minigpt4` is the command `minigpt4`."""

import sys

from minigpt4.cli import main

sys.exit(main())
