"""A run's folder as training leaves it, with a small untrained system; made without DeepSpeed."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvlp import config, recipe, system
from dsvlp.data.text import train_wordpiece
from dsvlp.engine.checkpoint import CheckpointStore
from dsvlp.engine.fragments import BUFFER, WEIGHT, Fragment
from dsvlp.engine.inference import named_tensors
from dsvlp.types import DataFacts, LabelTable
from tests.data.features.regions_of_noise import CLASSES, WIDTH

TEXTS = ["a red circle above a blue square", "two green triangles", "a yellow star left of a circle"]


def save_run(folder: Path, shown: recipe.Recipe) -> None:
    tokenizer = train_wordpiece(TEXTS, 80)
    shapes = LabelTable("shapes", (1, 2), ("circle", "square"))
    specials = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    facts = DataFacts(
        tokenizer.vocabulary,
        *specials,
        segmentation=shapes,
        boxes=shapes,
        objects=CLASSES,
        feature_width=WIDTH,
    )
    built = system.build(shown, facts)
    weights = dict(built.named_parameters())
    fragments = [
        Fragment(
            name, WEIGHT if name in weights else BUFFER, 0, tensor.detach().flatten(), tuple(tensor.shape)
        )
        for name, tensor in named_tensors(built).items()
    ]
    state = {"recipe": config.dump(shown), "facts": facts.to_json(), "best": None}
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(config.dump(shown)))
    tokenizer.save(folder / "tokenizer")
    store = CheckpointStore(folder / "checkpoints")
    store.save(7, fragments, state, background=False)
    store.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    save_run(folder, recipe.load("tiny_svl"))
    return folder


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A PNG of 40 x 30 pixels: predict takes any format and size."""
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
