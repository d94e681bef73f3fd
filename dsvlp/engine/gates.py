"""The gates of a fusion: how far each layer lets the other modality in (FIBER, 1.2 and 1.4).

A gate is one number, 0 before training. `model.fusion.K.image.gate` is named `image/K` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from dsvlp.system import System

_GATE = re.compile(r"model\.fusion\.(\d+)\.(image|text)\.gate")


def gate_names(parameters: Iterable[str]) -> dict[str, str]:
    """Returns parameter name -> "image/K" or "text/K" of those that are gates."""
    found = {name: _GATE.fullmatch(name) for name in parameters}
    return {name: f"{match[2]}/{match[1]}" for name, match in found.items() if match is not None}


def gates(system: System) -> dict[str, float]:
    """Returns the gates of a system that is not under ZeRO; empty where its fusion has none."""
    parameters = dict(system.named_parameters())
    return {short: parameters[name].item() for name, short in gate_names(parameters).items()}


@contextmanager
def closed_gates(system: System) -> Iterator[None]:
    """All gates are 0 inside, and as before afterwards: the fused passes see one modality each."""
    parameters = dict(system.named_parameters())
    found = [parameters[name] for name in gate_names(parameters)]
    before = [gate.detach().clone() for gate in found]
    with torch.no_grad():
        for gate in found:
            gate.zero_()
        try:
            yield
        finally:
            for gate, value in zip(found, before, strict=True):
                gate.copy_(value)
