"""Images of several shapes: losses, scores and predictions do not depend on the cut or on their company."""

import io
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

import dsvlp
from dsvlp.data.dataset import Dataset
from dsvlp.data.frames import Framing
from dsvlp.data.loader import Loader
from dsvlp.data.text import Tokenizer
from dsvlp.engine.inference import Inference
from dsvlp.engine.retrieval import Gallery
from dsvlp.system import ImageRequest, MatchRequest, System, TextRequest, TrainRequest, build
from dsvlp.types import Batch, States
from tests.batches import make_facts, make_pixelbert_recipe
from tests.data.pictures_of_noise import make_dataset, make_tokenizer
from tests.predict.conftest import TEXTS, save_run

SIDES = ((40, 56), (64, 32), (48, 48), (30, 60), (60, 40), (40, 60), (50, 40))
IMAGES, SHORT, LONG = 14, 96, 192
SETTINGS = (
    f"model.image_size={SHORT}",
    f"model.longest_side={LONG}",
    "model.text.vocabulary=256",
    "model.text.max_length=16",
    "data.bucket_window=2",
    "data.workers=0",
    "batch.micro_pairs=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Dataset, Tokenizer]:
    """Images of seven shapes, two captions each."""
    dataset = make_dataset(tmp_path_factory.mktemp("aspects"), "noise", [2] * IMAGES, sides=SIDES)
    return dataset, make_tokenizer([dataset])


def loader(data: tuple[Dataset, Tokenizer], split: Literal["train", "evaluate"], *overrides: str) -> Loader:
    dataset, tokenizer = data
    recipe = make_pixelbert_recipe(*SETTINGS, *overrides)
    return Loader(recipe, [dataset], tokenizer, rank=0, world=1, split=split)


def exact(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double(), weight=batch.weight.double())


@pytest.fixture(scope="module")
def system(data) -> System:
    """An untrained system far from its start, in double precision: equal values differ by rounding alone."""
    made = build(make_pixelbert_recipe(*SETTINGS), make_facts(data[1].vocabulary))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return made.double()


@pytest.fixture(scope="module")
def batches(data) -> list[Batch]:
    """A pass of an evaluation."""
    with loader(data, "evaluate") as some:
        return [exact(batch) for batch in some]


@pytest.fixture
def engine(system) -> Inference:
    return Inference(system, "fp32", torch.device("cpu"))


def alone(engine: Inference, batch: Batch, image: int, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """Slow reference: one image of a batch with one text."""
    one = slice(image, image + 1)
    states = engine(ImageRequest(batch.images[one], batch.image_mask[one]))
    return float(engine(MatchRequest(states, engine(TextRequest(ids[None], mask[None]))))[1])


def test_a_gallery_of_several_shapes_scores_each_pair_as_it_does_alone(engine, batches):
    assert len({tuple(batch.images.shape) for batch in batches}) > 2
    gallery = Gallery(engine, batches, chunk_pairs=50)
    scores, names = gallery.matches(), gallery.names
    assert scores.shape == (IMAGES, 2 * IMAGES)
    texts = {
        int(batch.samples[pair]): (batch.text_ids[pair], batch.text_mask[pair])
        for batch in batches
        for pair in range(len(batch.samples))
    }
    first: dict[int, tuple[Batch, int]] = {}  # an image of two captions is encoded once, where it comes first
    for batch in batches:
        for image, row in enumerate(batch.rows.tolist()):
            first.setdefault(row, (batch, image))
    with torch.no_grad():
        for line, row in list(enumerate(names.image_rows.tolist()))[::2]:
            for column in (0, 2 * IMAGES - 1):
                expected = alone(engine, *first[row], *texts[int(names.samples[column])])
                assert scores[line, column] == pytest.approx(expected, abs=1e-6)
    assert scores.std() > 1e-3


def test_cutting_the_batch_changes_no_loss_and_no_gradient(data, system):
    found = []
    for micro in (8, 2):
        system.train().zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        with loader(data, "train", f"batch.micro_pairs={micro}") as some:
            for batch in (next(some) for _ in range(8 // micro)):
                losses = system(TrainRequest(system.prepare(exact(batch))))
                total = total + torch.stack([loss.sum.double() for loss in losses.values()]).sum()
        total.backward()
        gradients = {name: p.grad.clone() for name, p in system.named_parameters() if p.grad is not None}
        found.append((total.item(), gradients))
    (one, first), (other, second) = found
    assert one == pytest.approx(other, rel=1e-6)
    assert first.keys() == second.keys()
    largest = max(float(gradient.abs().max()) for gradient in first.values())
    for name, gradient in first.items():
        assert float((gradient - second[name]).abs().max()) < 1e-6 * largest, name


def test_cells_with_picture_are_those_that_an_image_has_alone(engine, batches):
    framing = Framing(SHORT, LONG)
    with torch.no_grad():
        for batch in batches:
            states: States = engine(ImageRequest(batch.images, batch.image_mask))
            sizes = np.array([SIDES[row % len(SIDES)] for row in batch.rows.tolist()])
            for mask, (height, width) in zip(states.mask, framing.frames(sizes), strict=True):
                own = (-(-int(height) // 32) // 2) * (-(-int(width) // 32) // 2)
                assert mask.sum() == own > 0


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aspects") / "run"
    save_run(folder, make_pixelbert_recipe(*SETTINGS))
    return dsvlp.load(folder)


def png(height: int, width: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(height * width).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_predictions_take_images_of_several_shapes_at_once(predictor):
    wide, tall, square = png(40, 80), png(70, 35), png(50, 50)
    texts = predictor.encode_text(TEXTS)
    together = predictor.encode_image([wide, tall, square])
    assert together.mask.sum(1).tolist() == [3, 3, 1]
    assert predictor.score(together, texts).shape == (3,)
    twice = predictor.encode_image([wide, wide])
    single = predictor.encode_image([wide])
    assert torch.allclose(twice.tokens[1:], single.tokens, atol=1e-5)
    assert single.tokens.shape[:2] == (1, 3)
