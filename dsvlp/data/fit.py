"""Whether data sets and a tokenizer fit a recipe; asked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from dsvlp import catalog
from dsvlp.data.answers import check_shared
from dsvlp.data.dataset import Dataset
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError
from dsvlp.recipe import Recipe, SemVLPModel
from dsvlp.types import DataFacts, LabelTable


def facts(datasets: Sequence[Dataset], tokenizer: Tokenizer) -> DataFacts:
    """Returns what a system must know of its data."""
    return DataFacts(
        vocabulary=tokenizer.vocabulary,
        pad_id=tokenizer.pad_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        mask_id=tokenizer.mask_id,
        segmentation=datasets[0].segmentation,
        boxes=datasets[0].boxes,
        objects=datasets[0].objects,
        feature_width=datasets[0].features.width if datasets[0].features is not None else 0,
        answers=answer_table(datasets),
    )


def answer_table(datasets: Sequence[Dataset]) -> LabelTable | None:
    """Returns the answers of data sets that share one table, None where none has questions."""
    return next((dataset.answers for dataset in datasets if dataset.answers is not None), None)


def check_annotations(recipe: Recipe, datasets: Sequence[Dataset], held_out: Dataset | None = None) -> None:
    """Raises `DataError` where a data set lacks what an objective reads, or label tables differ."""
    every = [*datasets, held_out] if held_out is not None else datasets
    for dataset in every:
        check_features(recipe, dataset)
    for name in recipe.objectives.enabled():
        for annotation in sorted(catalog.OBJECTIVES[name].data - {"answers"}):
            for dataset in every:
                _check_annotation(name, annotation, dataset, datasets[0])
    if recipe.objectives.qa is not None:
        places = [(dataset.path, dataset.answers) for dataset in every]
        check_shared(places[: len(datasets)], places[-1])


def check_features(recipe: Recipe, dataset: Dataset) -> None:
    """Raises `DataError` where a model of objects finds no region features, or not those that it is of."""
    if not isinstance(recipe.model, SemVLPModel):
        return
    model = recipe.model
    if dataset.features is None:
        raise DataError(
            f"{dataset.path} has no region features, which {model.system} reads in place of pictures",
            "the folder X.features that belongs to it",
            f"Make them with `dsvlp data features {dataset.path}`, and name them in the recipe's `features`",
        )
    found = dataset.features.manifest
    mop = recipe.objectives.mop
    found.check_fits(dataset.features.path, model.objects, model.feature_width, mop.classes if mop else None)


def _check_annotation(objective: str, annotation: str, dataset: Dataset, first: Dataset) -> None:
    table, expected = getattr(dataset, annotation), getattr(first, annotation)
    if table is None:
        raise DataError(
            f"{dataset.path} has no {annotation}, which objectives.{objective} reads",
            f"a data set with {annotation}",
            f"Write it with a reader that has them, or set objectives.{objective}=false",
        )
    if table != expected:
        raise DataError(
            f"{dataset.path} has the {annotation} label table {table.name!r} of {len(table.ids)} classes",
            f"{expected.name!r} of {len(expected.ids)} classes, as {first.path} has",
            "Mix only data sets of one label table",
        )


def choose_tokenizer(recipe: Recipe, datasets: Sequence[Dataset]) -> Tokenizer:
    """Returns the recipe's tokenizer, or the one that lies beside the data.

    Raises:
        DataError: there is none, the sources have different ones, or it does not fit the model.
    """
    if recipe.data.tokenizer is not None:
        tokenizer = Tokenizer.load(recipe.data.tokenizer)
    else:
        tokenizer = _beside(datasets)
    text = recipe.model.text
    tokenizer.check_fits(text.vocabulary)
    if recipe.model.pretrained and tokenizer.vocabulary != text.vocabulary:
        raise DataError(
            f"the tokenizer {tokenizer.source} has {tokenizer.vocabulary} ids, the published weights "
            f"{text.weights!r} {text.vocabulary}",
            "the tokenizer that the weights were trained with",
            f"Set data.tokenizer={text.weights}",
        )
    return tokenizer


def _beside(datasets: Sequence[Dataset]) -> Tokenizer:
    found = {dataset.path: Tokenizer.load(dataset.tokenizer) for dataset in datasets if dataset.tokenizer}
    if not found:
        raise DataError(
            f"{datasets[0].path} has no tokenizer beside it and data.tokenizer is not set",
            "one of the two",
            f"Run `dsvlp data vocab {datasets[0].path}`, or set data.tokenizer to a folder or hub name",
        )
    if len({tokenizer.fingerprint for tokenizer in found.values()}) > 1:
        raise DataError(
            f"the tokenizers beside {', '.join(map(str, found))} differ",
            "one tokenizer for all sources",
            "Set data.tokenizer",
        )
    return next(iter(found.values()))
