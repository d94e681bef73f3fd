"""Made-up batches, facts and small recipes for tests: valid in every field, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from dsvlp import recipe
from dsvlp.types import Batch, DataFacts, Fetched, LabelTable

PAD, CLS, SEP, MASK, FIRST_WORD = 0, 1, 2, 3, 5
SHAPES = LabelTable("shapes", (3, 7, 11, 12), ("circle", "square", "triangle", "star"), ignore=0)
ANSWERS = LabelTable("answers", (0, 1, 2), ("yes", "no", "two"))
OBJECTS, FEATURES = 5, 12  # of an image, and the width of an object's feature
SMALL = (
    "model.text.width=32",
    "model.text.heads=2",
    "model.text.feed_forward=64",
    "model.text.vocabulary=40",
    "model.text.max_length=10",
    "batch.global_pairs=8",
    "batch.micro_pairs=8",
)


def make_facts(vocabulary: int = 40) -> DataFacts:
    """Returns facts of a data set with maps, boxes and objects of four classes, and three answers."""
    return DataFacts(
        vocabulary,
        PAD,
        CLS,
        SEP,
        MASK,
        SHAPES,
        SHAPES,
        objects=SHAPES,
        feature_width=FEATURES,
        answers=ANSWERS,
    )


def make_batch(
    pairs: int = 8,
    captions: int = 1,
    image_size: int = 32,
    length: int = 10,
    vocabulary: int = 40,
    boxes: int = 6,
    partners: bool = True,
    seed: int = 0,
) -> Batch:
    """Returns a random batch as the loader would make it.

    Args:
        pairs: P; the images are P / captions.
        captions: successive pairs that name one image.
        image_size: pixels of both sides.
        length: L; texts have 1 to L - 2 words.
        vocabulary: token ids, the first five of them special.
        boxes: K; images have 0 to K labels, some images have no map.
        partners: T = 2P with the partners' texts in the second half; else T = P.
        seed: the same seed gives the same batch.
    """
    draw = torch.Generator().manual_seed(seed)
    images = pairs // captions

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=draw)

    own = torch.arange(pairs)
    text_ids, text_mask, special_mask = _texts(pairs, length, vocabulary, draw)
    partner, matched = own, torch.ones(pairs, dtype=torch.bool)
    if partners:
        other = (own + captions) % pairs
        text_ids, text_mask, special_mask = (
            torch.cat((t, t[other])) for t in (text_ids, text_mask, special_mask)
        )
        partner, matched = own + pairs, integers(2, pairs) == 0
    segmentation = integers(len(SHAPES.names) + 1, images, image_size, image_size) - 1
    segmentation[integers(4, images) == 0] = -1
    labels = integers(len(SHAPES.names), images, boxes)
    labels[integers(3, images, boxes) == 0] = -1
    return Batch(
        images=torch.randn(images, 3, image_size, image_size, generator=draw),
        text_ids=text_ids,
        text_mask=text_mask,
        special_mask=special_mask,
        pairs=torch.stack((own // captions, own), 1),
        partner=partner,
        matched=matched,
        weight=torch.ones(pairs),
        image_keys=integers(2**62, images),
        pair_keys=integers(2**62, pairs),
        segmentation=segmentation,
        boxes_cxcywh=torch.rand(images, boxes, 4, generator=draw),
        box_labels=labels,
        samples=own,
        rows=torch.arange(images),
    )


def make_objects(pairs: int = 8, captions: int = 1, seed: int = 0, **sizes: Any) -> Batch:
    """Returns a random batch of a model of objects: one to five an image, some of them without a class.

    Two thirds of the texts have an answer. `sizes` are those of `make_batch`.
    """
    batch = make_batch(pairs, captions, image_size=1, seed=seed, **sizes)
    images, draw = len(batch.images), torch.Generator().manual_seed(seed + 1)
    found = torch.randint(1, OBJECTS + 1, (images, 1), generator=draw)
    labels = torch.randint(-1, len(SHAPES.names), (images, OBJECTS), generator=draw)
    return replace(
        batch,
        images=torch.randn(images, OBJECTS, FEATURES + 4, generator=draw).half(),
        image_mask=torch.arange(OBJECTS) < found,
        segmentation=None,
        boxes_cxcywh=None,
        box_labels=None,
        labels=torch.randint(-1, len(ANSWERS.names) - 1, (pairs,), generator=draw),
        object_labels=labels,
        object_confidences=torch.rand(images, OBJECTS, generator=draw),
        mode="halves",
    )


def make_fetched(
    count: int, image_size: int = 32, length: int = 10, vocabulary: int = 40, seed: int = 0
) -> Fetched:
    """Returns random images and texts as the fetcher would bring them, of rows and samples from 1000 on."""
    draw = torch.Generator().manual_seed(seed + 1)
    numbers = torch.arange(2 * count).view(count, 2) + 1000
    captions, caption_mask, _ = _texts(count, length, vocabulary, draw)
    return Fetched(
        torch.randn(count, 3, image_size, image_size, generator=draw),
        *_texts(count, length, vocabulary, draw),
        captions,
        caption_mask,
        numbers,
        numbers,
        torch.arange(count),
        torch.randint(0, 2**62, (count,), generator=draw),
    )


def _texts(
    count: int, length: int, vocabulary: int, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(FIRST_WORD, vocabulary, (count, length), generator=draw)
    end = torch.randint(2, length, (count, 1), generator=draw)
    place = torch.arange(length)
    ids[:, 0] = CLS
    ids = ids.scatter(1, end, SEP).masked_fill(place > end, PAD)
    return ids, place <= end, (place == 0) | (place >= end)


def take_pairs(batch: Batch, rows: Sequence[int]) -> Batch:
    """Returns the pairs `rows` with their images and texts, as another cut or order would deal them."""
    index = torch.tensor(rows)
    pairs = batch.pairs[index]
    images, image_rows = pairs[:, 0].unique(return_inverse=True)
    texts, text_rows = torch.cat((pairs[:, 1], batch.partner[index])).unique(return_inverse=True)
    own, partner = text_rows.chunk(2)
    cut: dict[str, Any] = {"pairs": torch.stack((image_rows, own), 1), "partner": partner}
    cut["mode"], cut["labels"] = batch.mode, None if batch.labels is None else batch.labels[index]
    for name in ("matched", "weight", "pair_keys", "samples"):
        cut[name] = getattr(batch, name)[index]
    for name in ("text_ids", "text_mask", "special_mask"):
        cut[name] = getattr(batch, name)[texts]
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name not in cut and value is not None:
            cut[field.name] = value[images]
    return replace(batch, **cut)


def make_recipe(*overrides: str, objectives: tuple[str, ...] = ("itm", "mlm", "segl")) -> recipe.Recipe:
    """Returns `tiny_svl` made smaller still (32 pixels, width 32) with the given objectives."""
    sizes = (
        "model.image_size=32",
        "model.image.patch_size=8",
        "model.image.width=32",
        "model.image.heads=2",
        "model.image.layers=2",
        "model.text.layers=2",
        "model.text.dropout=0.0",
    )
    dropped = [f"objectives.{name}=false" for name in ("itm", "mlm", "segl") if name not in objectives]
    chosen = [f"objectives.{name}={{}}" for name in objectives]
    ssul = ["objectives.ssul.cell=8"] if "ssul" in objectives else []
    spl = ["model.visual_queries=4"] if "spl" in objectives else []
    return recipe.load("tiny_svl", [*SMALL, *sizes, *dropped, *chosen, *ssul, *spl, *overrides])


def make_fiber_recipe(*overrides: str) -> recipe.Recipe:
    """Returns `tiny_fiber` made smaller still (64 pixels, width 32): ITC, ITM with hard negatives, MLM."""
    sizes = (
        "model.image_size=64",
        "model.image.width=16",
        "model.image.heads=[1, 2, 2, 4]",
        "model.image.depths=[1, 1, 2, 2]",
        "model.text.layers=4",
        "model.text.positions=16",
        "model.fusion.plan=[[3, 1, 1], [4, 0, 2], [4, 1, 3]]",
    )
    return recipe.load("tiny_fiber", [*SMALL, *sizes, *overrides])


def make_meter_recipe(*overrides: str) -> recipe.Recipe:
    """Returns the tiny FIBER's towers and objectives with two co-attention layers on top in its place."""
    tables = make_fiber_recipe(*overrides).model_dump(mode="json")
    tables["model"]["system"] = "meter"
    tables["model"]["fusion"] = {"layers": 2, "heads": 2, "feed_forward": 64, "dropout": 0.0}
    del tables["model"]["captioning"]
    return recipe.from_json(tables, "test")


def make_semvlp_recipe(*overrides: str) -> recipe.Recipe:
    """Returns `tiny_semvlp` made smaller still (5 objects, width 32) with all its objectives, QA too."""
    sizes = (
        f"model.objects={OBJECTS}",
        f"model.feature_width={FEATURES}",
        "model.cross_from=1",
        "model.text.layers=3",
        "objectives.mop.classes=4",
        "objectives.mop.probability=0.4",
        "objectives.qa={}",
    )
    return recipe.load("tiny_semvlp", [*SMALL, *sizes, *overrides])


def make_pixelbert_recipe(*overrides: str) -> recipe.Recipe:
    """Returns `tiny_pixelbert` made smaller still (128 pixels, four cells, width 32), statistics frozen."""
    sizes = (
        "model.image_size=128",
        "model.image.batch_norm=frozen",
        "model.text.layers=2",
        "data.captions_per_image=1",
    )
    return recipe.load("tiny_pixelbert", [*SMALL, *sizes, *overrides])
