"""Makes the embedded default data: a training and a held-out data set, once for each set of parameters."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.writer import Options as FeatureOptions
from dsvlp.data.features.writer import write as write_features
from dsvlp.data.synthetic.objects import FORMAT as OBJECTS
from dsvlp.data.synthetic.objects import read_objects
from dsvlp.data.synthetic.read import read_world
from dsvlp.data.synthetic.vocabulary import write_vocabulary
from dsvlp.data.synthetic.world import Split, World
from dsvlp.data.synthetic.write import FORMAT, write_world
from dsvlp.data.text import Tokenizer
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from dsvlp.recipe import Synthetic

HELD_OUT_IMAGES = 200
_WAIT_SECONDS = 900.0

log = logging.getLogger(__name__)


def ensure_world(settings: Synthetic, folder: Path, questions: bool = False) -> tuple[Path, Path]:
    """Returns the training and the held-out `.beton` of a synthetic world, made if they are not there.

    Any number of processes may call at once: one writes, the others wait. What a killed process left is
    taken up again.

    Args:
        settings: the recipe's `data.synthetic`.
        folder: the cache; each set of parameters has a folder of its own in it.
        questions: with questions and their answers beside the captions.

    Raises:
        DataError: it cannot be written, or another process has been writing for too long.
    """
    place = folder / f"synthetic-{_digest(settings)}{'-questions' if questions else ''}"
    tasks = ("caption", "question") if questions else ("caption",)
    train, held_out = place / "train.beton", place / "heldout.beton"
    if not _complete(held_out):
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / "lock"):
            _ensure_split(settings, "train", settings.images, train, tasks)
            _ensure_split(settings, "heldout", HELD_OUT_IMAGES, held_out, tasks)
    return train, held_out


def ensure_objects(settings: Synthetic, beton: Path, objects: int, width: int) -> Path:
    """Returns the region features of a data set of `ensure_world`, made beside it if they are not there.

    Args:
        settings: of the world.
        beton: the training or the held-out data set.
        objects: N.
        width: F.

    Raises:
        DataError: as `ensure_world`.
    """
    split: Split = "train" if beton.stem == "train" else "heldout"
    out = beton.with_name(f"{split}-{objects}x{width}-{OBJECTS}.features")
    if not out.exists():
        with _locked(beton.with_name("lock")):
            if not out.exists():
                log.info("making the synthetic world's region features in %s", out)
                world = World(settings.seed, split, settings.image_size, settings.max_shapes, width)
                dataset = Dataset.open(beton, verify="quick")
                source = read_objects(dataset, world, objects)
                write_features(source, dataset, out, FeatureOptions(objects, progress=False))
    return out


def _digest(settings: Synthetic) -> str:
    parameters = {"format": FORMAT, "held_out": HELD_OUT_IMAGES, **settings.model_dump()}
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]


def _complete(beton: Path) -> bool:
    """Returns whether the data set and its tokenizer are there; the tokenizer comes last."""
    return (beton / "tokenizer").is_dir()


def _ensure_split(
    settings: Synthetic, split: Split, images: int, beton: Path, tasks: tuple[str, ...]
) -> None:
    if _complete(beton):
        return
    raw = beton.with_name(f"{split}-raw")
    if not beton.exists():
        log.info("making the synthetic world: %d scenes (%s) in %s", images, split, beton.parent)
        world = World(settings.seed, split, settings.image_size, settings.max_shapes)
        reader = read_world(write_world(raw, world, images), tasks)
        write(reader, beton, Options(processes=1, progress=False))
    partial = beton / ".tokenizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    Tokenizer.load(write_vocabulary(beton.with_name("vocab.txt"))).save(partial)
    partial.rename(beton / "tokenizer")
    shutil.rmtree(raw, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system takes back when this process ends, however it ends."""
    end = time.monotonic() + _WAIT_SECONDS
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise DataError(
                        f"another process has held {path} for {_WAIT_SECONDS:.0f} s",
                        "a synthetic world that is made in less",
                        "End that process, or choose another folder",
                    ) from error
                time.sleep(0.1)
        yield
