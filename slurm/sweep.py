"""A sweep over learning rate and seed, from a login node: python slurm/sweep.py FOLDER.

Then `dsvlp sweep status FOLDER`, `dsvlp sweep retry FOLDER`, and
`tensorboard --logdir FOLDER/members` for the curves and HParams.
"""

import sys
from pathlib import Path

from dsvlp.launch import sweep

members = sweep.grid({"optimizer.lr": [3e-4, 1e-3, 3e-3, 1e-2], "seed": [0, 1]})
# At random instead: sweep.drawn(8, {"optimizer.lr": sweep.log_uniform(1e-4, 1e-2), "seed": [0, 1, 2]})

submitted = sweep.submit(
    "tiny_svl",
    members,
    Path(sys.argv[1]),
    sweep.Resources(nodes=1, gpus=1, hours=0.5),  # of each member
    overrides=["schedule.steps=200", "checkpoint.every_steps=50"],  # for all
    at_once=2,
    budget_gpu_hours=4,  # 8 members x 1 GPU x 0.5 h; a larger sweep is refused
)
print(f"job {submitted.submissions[-1].job}, {len(submitted.members)} members in {submitted.folder}")
