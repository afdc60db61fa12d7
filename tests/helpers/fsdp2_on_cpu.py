"""accelerate launch --config_file configuration/accelerate/fsdp2.yaml tests/helpers/fsdp2_on_cpu.py [--set ...]

stage1.py under FSDP2 on CPUs: PyTorch shards there over gloo, but accelerate limits FSDP to accelerators, so this says once
that the processes are of such a kind.
"""

import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from minigpt4.trainer_scripts.stage import main

_init = AcceleratorState.__init__


def _init_as_accelerators(self, *args, **kwargs):
    if PartialState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_HPU
    _init(self, *args, **kwargs)


if __name__ == "__main__":
    AcceleratorState.__init__ = _init_as_accelerators
    sys.exit(main(default_recipe="stage1-embedded", stage=1, doc=__doc__))
