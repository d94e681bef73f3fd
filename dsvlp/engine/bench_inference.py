"""The measurement behind `dsvlp bench inference`: what encoding and matching image-text pairs takes.

A system is asked as prediction and retrieval ask it, by requests: an image once, a text once, then the
fusion of both with ITM's score. Where it reads region features, making them of pictures can be measured
beside it. Its weights are random: they decide no time. The batches' turns are shuffled by repeats, so that
a busy moment does not fall on one of them alone.

Legend: B pairs, L text tokens, S pixels of a side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dsvlp import config, dist
from dsvlp import system as systems
from dsvlp.accounting import flops
from dsvlp.accounting.flops import COCO_STUFF_CLASSES, LXMERT_ANSWERS, VISUAL_GENOME_CLASSES
from dsvlp.accounting.flops_pixelbert import picture
from dsvlp.accounting.flops_semvlp import BOX
from dsvlp.engine import bench_extraction
from dsvlp.engine.bench_extraction import Extraction
from dsvlp.engine.bench_figures import Figure
from dsvlp.engine.bench_result import result
from dsvlp.engine.inference import Inference
from dsvlp.recipe import PixelBERTModel, Recipe, RoBERTa, SemVLPModel
from dsvlp.system import ImageRequest, MatchRequest, TextRequest
from dsvlp.types import DataFacts, LabelTable, States

PARTS = ("encode_image", "encode_text", "fuse")
EXTRACT = "find and pool its objects"
_SPECIAL = 5  # ids kept for special tokens


@dataclass(frozen=True)
class Lengths:
    """What to measure, and how long.

    Attributes:
        batches: sizes of a batch, pairs.
        seconds: of one measurement, at least one call.
        repeats: measurements.
        text_tokens: real length of the texts; None: the recipe's full length.
        extraction: how region features are made, to be measured too.
    """

    batches: tuple[int, ...]
    seconds: float
    repeats: int
    text_tokens: int | None = None
    extraction: Extraction | None = None


def bench(recipe: Recipe, lengths: Lengths) -> dict[str, Any]:
    """Returns ms a pair of a recipe's system by batch size and request, as JSON."""
    device = dist.device()
    system = systems.build(_random(recipe), facts(recipe))
    inference = Inference(system, recipe.engine.precision, device)
    tokens = lengths.text_tokens or recipe.model.text.max_length
    calls = {size: _calls(inference, recipe, size, tokens, device) for size in lengths.batches}
    if lengths.extraction is not None:
        make = bench_extraction.maker(lengths.extraction, recipe, device)
        calls = {size: {EXTRACT: make(size), **parts} for size, parts in calls.items()}
    found: dict[tuple[int, str], list[float]] = {(size, part): [] for size in calls for part in calls[size]}
    with torch.inference_mode():
        for repeat in range(lengths.repeats + 1):  # the first warms up
            for size, by_part in calls.items():
                for part, call in by_part.items():
                    seconds = _timed(call, lengths.seconds if repeat else 0.0, device)
                    if repeat:
                        found[size, part].append(seconds / size)
    about = {
        "recipe": config.digest(recipe),
        "batches": list(lengths.batches),
        "seconds": lengths.seconds,
        "repeats": lengths.repeats,
        "text_tokens": tokens,
        "precision": recipe.engine.precision,
        "threads": torch.get_num_threads(),
        **({} if lengths.extraction is None else asdict(lengths.extraction)),
    }
    rows = figures(recipe, tokens, found)
    return result("inference", rows, about, device, recipe=config.dump(recipe))


def figures(recipe: Recipe, tokens: int, found: dict[tuple[int, str], list[float]]) -> list[Figure]:
    """Returns the rows of the table.

    Args:
        recipe: the recipe.
        tokens: length of the texts.
        found: (batch, part) -> seconds a pair, a repeat each.
    """
    flop = forward_flops(recipe, tokens)
    rows = []
    for size in dict.fromkeys(size for size, _ in found):
        whole = [sum(parts) for parts in zip(*(found[size, part] for part in PARTS), strict=True)]
        parts = {part: found[size, part] for part in PARTS}
        for part, seconds in {**parts, "the whole pair": whole}.items():
            rows.append(Figure(f"batch {size}: {part}", "ms/pair", [1e3 * value for value in seconds]))
        if made := found.get((size, EXTRACT)):
            both = [sum(parts) for parts in zip(made, whole, strict=True)]
            for part, seconds in {EXTRACT: made, "the whole pair, its objects made": both}.items():
                rows.append(Figure(f"batch {size}: {part}", "ms/pair", [1e3 * value for value in seconds]))
        rows.append(Figure(f"batch {size}: pairs", "pairs/s", [1 / value for value in whole]))
        rows.append(Figure(f"batch {size}: achieved", "GFLOP/s", [flop / value / 1e9 for value in whole]))
    return [*rows, Figure("FLOPs a pair, by formula", "GFLOP", [flop / 1e9])]


def forward_flops(recipe: Recipe, tokens: int) -> float:
    """Returns the FLOP of encoding and fusing one pair, the objectives' heads left out."""
    return flops.total(flops.inference(recipe, float(tokens))).forward


def facts(recipe: Recipe) -> DataFacts:
    """Returns made-up facts of a vocabulary and label tables of the usual sizes."""
    text = recipe.model.text
    pad = text.padding_id if isinstance(text, RoBERTa) else 0
    first, second, third, *_ = (number for number in range(_SPECIAL) if number != pad)
    mop = recipe.objectives.mop
    return DataFacts(
        text.vocabulary,
        pad,
        first,
        second,
        third,
        segmentation=_labels(COCO_STUFF_CLASSES),
        boxes=_labels(VISUAL_GENOME_CLASSES),
        objects=_labels(VISUAL_GENOME_CLASSES if mop is None else mop.classes),
        answers=_labels(LXMERT_ANSWERS),
    )


def _labels(classes: int) -> LabelTable:
    return LabelTable("made-up", tuple(range(classes)), tuple(str(number) for number in range(classes)))


def _random(recipe: Recipe) -> Recipe:
    """Returns the recipe without published weights: none must be there, none decides a time."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": False})})


def _calls(
    inference: Inference, recipe: Recipe, size: int, tokens: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Returns part -> a call of it for a batch of `size` pairs."""
    vocabulary, images = recipe.model.text.vocabulary, _images(recipe, size, device)
    ids = torch.randint(_SPECIAL, vocabulary, (size, tokens), device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.inference_mode():
        image: States = inference(ImageRequest(images))
        text: States = inference(TextRequest(ids, mask))
    return {
        "encode_image": lambda: inference(ImageRequest(images)),
        "encode_text": lambda: inference(TextRequest(ids, mask)),
        "fuse": lambda: inference(MatchRequest(image, text)),
    }


def _images(recipe: Recipe, size: int, device: torch.device) -> Tensor:
    """Returns random images as the model reads them: pixels, of 4:3 where it keeps the aspect, or objects."""
    table = recipe.model
    if isinstance(table, SemVLPModel):
        shape = (size, table.objects, table.feature_width + BOX)
        return torch.rand(shape, device=device, dtype=torch.float16)
    sides = picture(table) if isinstance(table, PixelBERTModel) else (table.image_size, table.image_size)
    return torch.rand(size, 3, *sides, device=device)


def _timed(call: Callable[[], object], least: float, device: torch.device) -> float:
    """Returns the median seconds of calls made for `least` seconds, one at least; waits for the device."""
    seconds: list[float] = []
    while not seconds or sum(seconds) < least:
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
