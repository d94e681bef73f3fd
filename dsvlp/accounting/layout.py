"""What a layout of `ds_configs/` says about memory and communication. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STAGE_0_BUCKET = 500_000_000  # numbers; `MEMORY_OPT_ALLREDUCE_SIZE` of DeepSpeed 0.19
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's defaults of stage 3
REUSE_DISTANCE = 1_000_000_000


@dataclass(frozen=True)
class Layout:
    """ZeRO as DeepSpeed 0.19 runs it. Sizes are in numbers, not bytes.

    Attributes:
        name: the layout's, "zero2".
        stage: 0 to 3.
        offload: the optimizer's state lies in the host's memory.
        overlap: two buckets take turns.
        bucket: gradients that are reduced together.
        live, reuse: stage 3 keeps a gathered parameter while fewer than `live` are there and it is used
            again within the next `reuse`.
    """

    name: str
    stage: int
    offload: bool = False
    overlap: bool = False
    bucket: int = STAGE_0_BUCKET
    live: int = LIVE_PARAMETERS
    reuse: int = REUSE_DISTANCE

    @classmethod
    def from_json(cls, name: str, table: dict[str, Any]) -> Layout:
        """Returns what a checked layout says, DeepSpeed's defaults where it is silent."""
        zero = table["zero_optimization"]
        stage = int(zero["stage"])
        return cls(
            name,
            stage,
            offload=zero.get("offload_optimizer", {}).get("device", "none") == "cpu",
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            bucket=int(zero.get("reduce_bucket_size", STAGE_0_BUCKET)),
            live=int(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)),
            reuse=int(zero.get("stage3_max_reuse_distance", REUSE_DISTANCE)),
        )

    def gathered(self, numbers: int) -> int:
        """Returns how many of a model's parameters stage 3 holds whole at once, at most.

        Between a parameter's forward and backward lie at most 2 x the model: within `reuse`, it stays.
        """
        return min(numbers, self.live) if 2 * numbers <= self.reuse else min(numbers, self.live, self.bucket)
