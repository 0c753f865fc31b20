"""Train with FSDP 2 on CPUs: `torchrun sharded.py RECIPE [STEP]`. Accelerate itself shards on accelerators alone, and wraps processes on CPUs in DDP.

With STEP the run ends before the step of that number, so that it can be resumed.
"""

import sys
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from workbench.config.recipe import load_recipe
from workbench.training.stage import StageTrainer
from workbench.training.trainer import distill

LAYERS = ["WhisperEncoderLayer", "WhisperDecoderLayer"]
init, step = Accelerator.__init__, StageTrainer.step


def sharding(self, *args, **kwargs):
    init(self, *args, **kwargs)
    self.state.__dict__["distributed_type"] = PartialState().__dict__["distributed_type"] = DistributedType.FSDP
    self.state.__dict__["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=LAYERS,
        reshard_after_forward=True,
    )


def checked(self, *args):
    if len(sys.argv) > 2 and self.state.progress.step == int(sys.argv[2]):
        raise SystemExit(0)
    step(self, *args)
    plain = [n for n, p in self.context.model.named_parameters() if not hasattr(p, "full_tensor")]
    assert not plain, (len(plain), plain[:5], self.context.accelerator.is_fsdp2)


if __name__ == "__main__":
    Accelerator.__init__, StageTrainer.step = sharding, checked
    distill(load_recipe(Path(sys.argv[1])))
