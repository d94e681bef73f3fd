"""Everything that a recipe reads, opened and checked against each other: what a run begins with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dsvlp import dist
from dsvlp.data.dataset import Dataset
from dsvlp.data.fetch import Fetcher
from dsvlp.data.fit import check_annotations, choose_tokenizer, facts
from dsvlp.data.loader import Loader
from dsvlp.data.staged import nearest
from dsvlp.data.synthetic import ensure_objects, ensure_world
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError
from dsvlp.recipe import Recipe, SemVLPModel, Synthetic, accumulation, fetches_negatives
from dsvlp.types import DataFacts


@dataclass(frozen=True)
class Data:
    """Everything that a recipe reads, opened and checked. Close it, or use it in `with`.

    Attributes:
        train: this rank's training loader.
        fetcher: brings ITM's negatives again where they come from ITC's queue, else None.
        datasets: the training sources.
        held_out: the validation data set, or None.
        tokenizer: the tokenizer.
        facts: what the system must know.
    """

    recipe: Recipe
    train: Loader
    datasets: tuple[Dataset, ...]
    held_out: Dataset | None
    tokenizer: Tokenizer
    facts: DataFacts
    fetcher: Fetcher | None = None

    @property
    def bad_images(self) -> int:
        """Returns how many images of the training data could not be used so far."""
        return self.train.bad.total + (self.fetcher.bad.total if self.fetcher is not None else 0)

    @property
    def has_validation(self) -> bool:
        """Returns whether there is data to validate on."""
        return self.held_out is not None

    def validation(self) -> Loader:
        """Returns a new pass over the validation data, `watch.validation_pairs` of it; close it.

        Raises:
            DataError: the recipe has no validation data.
        """
        if self.held_out is None:
            raise DataError("the recipe has no validation data", "data.validation = a .beton data set")
        return Loader(
            self.recipe,
            [self.held_out],
            self.tokenizer,
            rank=dist.rank(),
            world=dist.world_size(),
            split="evaluate",
            pairs=self.recipe.watch.validation_pairs,
        )

    def __enter__(self) -> Data:
        return self

    def __exit__(self, *_: object) -> None:
        self.train.close()
        if self.fetcher is not None:
            self.fetcher.close()


def open_data(recipe: Recipe, cache: Path | None = None, drawn: bool = False) -> Data:
    """Returns the recipe's data sets, tokenizer and training loader, checked against each other.

    Where `data.train` is empty, the recipe's synthetic world stands in: made in the cache the first time.

    Args:
        recipe: the resolved recipe.
        cache: where made data is kept; None: `dsvlp` in the user's cache folder.
        drawn: for measurements: a recipe that names no data gets drawn scenes too.

    Raises:
        DataError: a file is absent or damaged, or does not fit the recipe.
        RecipeError: the recipe names no data.
    """
    if not drawn:
        recipe.data.check_named()
    sources, held_out = _places(recipe, cache or cache_folder())
    datasets = tuple(_open(*place) for place in sources)
    checked = _open(*held_out) if held_out is not None else None
    check_annotations(recipe, datasets, checked)
    tokenizer = choose_tokenizer(recipe, datasets)
    world, fetcher = dist.world_size(), None
    train = Loader(recipe, datasets, tokenizer, rank=dist.rank(), world=world, split="train")
    if fetches_negatives(recipe):
        fetcher = Fetcher(recipe, datasets, tokenizer, accumulation(recipe, world), world)
    return Data(recipe, train, datasets, checked, tokenizer, facts(datasets, tokenizer), fetcher)


Place = tuple[str | Path, str | Path | None]  # a data set, its region features


def _places(recipe: Recipe, cache: Path) -> tuple[list[Place], Place | None]:
    """Returns where the training sources lie, and the validation data; the synthetic world's are made."""
    data = recipe.data
    held_out = (data.validation, data.validation_features) if data.validation is not None else None
    if data.train:
        return [(source.path, source.features) for source in data.train], held_out
    places = synthetic_places(recipe, cache)
    return places[:1], held_out or places[1]


def synthetic_places(recipe: Recipe, cache: Path) -> list[Place]:
    """Returns where the synthetic world's training and held-out data lie, made if they are not there.

    With questions where the recipe trains on answers, with region features where its model reads them.
    """
    world = recipe.data.synthetic or Synthetic()
    made = ensure_world(world, cache, recipe.objectives.qa is not None)
    if not isinstance(recipe.model, SemVLPModel):
        return [(path, None) for path in made]
    shape = (recipe.model.objects, recipe.model.feature_width)
    return [(path, ensure_objects(world, path, *shape)) for path in made]


def _open(path: str | Path, features: str | Path | None) -> Dataset:
    near = nearest(Path(features)) if features is not None else None
    return Dataset.open(nearest(Path(path)), verify="quick", features=near)


def cache_folder() -> Path:
    """Returns the folder for data that can be made again, `~/.cache/dsvlp` unless XDG says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsvlp"
