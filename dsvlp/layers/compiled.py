"""torch.compile block by block: one graph serves all blocks of a kind and of the same shapes.

A step as a whole is no graph: its passes, hooks and collectives are Python's. Its time is in the towers'
and the fusion's blocks, and those stand in stacks of equals: their parameters are inputs of the graph, so
that twelve layers are compiled once. Shapes are fixed: another length of texts (`engine.cut_texts` has a
few) or number of fused pairs is one more graph.

* Forward alone is never compiled: validation, retrieval and serving read as before.
* A block's own hooks stay outside its graph; what hooks the modules inside it would be traced (ZeRO-3's
  hooks gather parameters: `engine.dsconfig` refuses the pair) or is not called (`engine.parts`).
* Activation checkpointing stands around a compiled block and runs its graph again.
* Dropout in a graph comes from the compiler's generator, seeded by torch's: a function of the step as
  without the compiler, but other numbers. Resuming is bit-exact on a CPU; on a GPU the compiler sums a
  table's gradient with atomics, whose order is free.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import dsvlp.vision  # noqa: F401  # isort: skip
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer

from dsvlp.errors import MissingDependency, RecipeError
from dsvlp.layers.bert import CrossedLayer
from dsvlp.layers.co_attention import CoAttentionLayer
from dsvlp.layers.cross_modality import CrossModalityLayer
from dsvlp.layers.fused import FusedPair

log = logging.getLogger(__name__)

BLOCKS = (
    Block,
    SwinTransformerBlock,
    BertLayer,
    RobertaLayer,
    CrossModalityLayer,
    CoAttentionLayer,
    CrossedLayer,
    FusedPair,
)

# Of one kind: shifted and plain windows by stage, lengths of texts, numbers of pairs. torch's default of 8
# would end a run that needs 9; one that needs more than these has shapes that change with the data.
MOST_GRAPHS = 64


class Compiled:
    """A block's forward: one compiled graph where gradients are needed, plain Python otherwise."""

    def __init__(self, forward: Any) -> None:
        self._plain = forward
        # A graph that breaks in two, or shapes that change without end, are errors and not slowness.
        self._graph = torch.compile(forward, fullgraph=True, dynamic=False)

    def __call__(self, *inputs: Any) -> Any:
        """Returns what the block's forward returns."""
        return (self._graph if torch.is_grad_enabled() else self._plain)(*inputs)


def compile_blocks(system: nn.Module, device: torch.device) -> None:
    """Lets a system's blocks be compiled when a step first runs them.

    Args:
        system: on its device, changed in place; names of parameters stay as they are.
        device: for which code is made.

    Raises:
        MissingDependency: a compiler or Python's headers are absent.
        RecipeError: the system has no block of a known kind.
    """
    check_compiler(device)
    blocks: list[nn.Module] = [module for module in system.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        kinds = ", ".join(kind.__name__ for kind in BLOCKS)
        raise RecipeError(
            "engine.compile = true, but the system has no block that is compiled",
            f"blocks of one of these kinds: {kinds}",
            "Set engine.compile=false",
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for block in blocks:
        block.forward = Compiled(block.forward)  # type: ignore[method-assign]
    kinds = ", ".join(sorted({type(block).__name__ for block in blocks}))
    log.info("compiling %d blocks (%s) as the first steps reach them", len(blocks), kinds)


def inside_graphs(system: nn.Module) -> set[nn.Module]:
    """Returns the modules inside compiled blocks: their hooks are not called."""
    blocks = [module for module in system.modules() if isinstance(vars(module).get("forward"), Compiled)]
    return {part for block in blocks for part in block.modules() if part is not block}


def check_compiler(device: torch.device) -> None:
    """Raises `MissingDependency` where torch.compile could not build its code for a device."""
    lacking = []
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        lacking.append("the package triton")
    names = ("cc", "gcc", "clang") if device.type == "cuda" else ("g++", "c++", "clang++")
    chosen = os.environ.get("CC" if device.type == "cuda" else "CXX")
    if not any(shutil.which(name) for name in ([chosen] if chosen else names)):
        lacking.append(f"a C{'' if device.type == 'cuda' else '++'} compiler ({chosen or names[0]})")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.is_file():
        lacking.append(f"Python's headers ({headers})")
    if lacking:
        raise MissingDependency(
            f"engine.compile = true, but this machine lacks {' and '.join(lacking)}",
            "what torch.compile builds its code with on each machine that trains",
            "Install it, or set engine.compile=false",
        )
