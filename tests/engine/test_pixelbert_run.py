"""A Pixel-BERT run that is stopped before epoch 25 and goes on: its two rates, as the optimizer has them."""

import sys
from pathlib import Path

import torch

from dsvlp.accounting.ledger import read_ledger
from dsvlp.engine.metrics import read_lines
from dsvlp.launch import local
from tests.engine.processes import ROOT, environment
from tests.engine.test_train import state

KEYS = [
    "tiny_pixelbert",
    "model.image_size=64",
    "model.text.layers=1",
    "data.captions_per_image=1",
    "data.synthetic.images=24",
    "data.synthetic.image_size=64",
    "data.workers=0",
    "batch.global_pairs=8",
    "batch.micro_pairs=8",
    "engine.zero=zero2",
    "watch.log_every_steps=1",
    "watch.validation_pairs=8",
    "optimizer.lr=1e-4",
    "optimizer.cnn.lr=1e-2",
    "schedule.warmup=0.0",
    "schedule.decay=steps",
    "schedule.drops=[0.625, 0.875]",  # 25 and 35 of 40 epochs
    "schedule.steps=8",
]


def test_the_rates_after_a_resume_across_epochs_25_and_35_are_exact(tmp_path: Path) -> None:
    run, script = tmp_path / "run", str(ROOT / "tests" / "engine" / "faulty_run.py")
    arguments = [str(run), "stop:2:0", *KEYS, "--", str(run), "", *KEYS]
    scratch = environment(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert local.launch([sys.executable, script, *arguments], 1, scratch) == 0
    assert [attempt.to_step for attempt in read_ledger(run)] == [4, 8]

    lines = [line for line in read_lines(run / "metrics.jsonl") if "loss/total" in line]
    assert [line["optimizer/learning_rate/cnn"] for line in lines] == [1e-2] * 5 + [1e-3] * 2 + [1e-4]
    assert [line["optimizer/learning_rate/tower"] for line in lines] == [1e-4] * 5 + [1e-5] * 2 + [1e-6]

    tensors, _ = state(run, 8)
    trunk = {name for name, _ in tensors if name.startswith("model.image.trunk.")}
    kinds = {kind for name, kind in tensors if name in trunk}
    assert kinds == {"weight", "momentum_buffer", "buffer"}
    assert not [name for name, kind in tensors if kind == "momentum_buffer" and name not in trunk]
    assert any(torch.any(value != 0) for (_, kind), value in tensors.items() if kind == "momentum_buffer")
