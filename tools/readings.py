#!/usr/bin/env python
"""What keeps a run on the synthetic world from reading shapes and relations? Three readings, two tries.

Readings, on held-out scenes: how often ITM prefers the true caption to one with another colour, shape
or relation word; how often MLM names such a word; how often SEGL, on the image tower alone, names a
shape's colour and its kind where a cell holds one. They show at which stage the knowledge is lost.

Tries, unless `--steps 0`: ITM's mismatched texts come from other pictures, which nearly always show
other colours, so that colours are enough. The run goes on twice with equal data, steps and rates: with
the same kind of partners (control), and with the pair's own caption in which one word is exchanged.

    OMP_NUM_THREADS=2 python tools/readings.py runs/long --steps 600
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from dsvlp.data.frames import Framing
from dsvlp.data.opened import open_data
from dsvlp.data.reading import read_picture, together
from dsvlp.data.synthetic import RelationPair, relation_pairs
from dsvlp.data.synthetic.language import RELATION_SWAPS
from dsvlp.data.synthetic.world import COLOURS, SHAPES
from dsvlp.data.text import Tokenizer
from dsvlp.engine.inference import Inference, Trained, load_trained
from dsvlp.engine.probes import relation_accuracy, single_tokens, word_accuracy
from dsvlp.engine.retrieval import Gallery
from dsvlp.engine.step import reseed
from dsvlp.objectives.mlm import MLM
from dsvlp.recipe import Recipe
from dsvlp.system import System, TrainRequest
from dsvlp.types import Batch

KINDS = {
    "colour": {word: tuple(other for other in COLOURS if other != word) for word in COLOURS},
    "shape": {word: tuple(other for other in SHAPES if other != word) for word in SHAPES},
    "relation": {word: (other,) for word, other in RELATION_SWAPS.items()},
}


def word_ids(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Returns token id -> ids of the words it may be exchanged for."""
    words = {word: others for kind in KINDS.values() for word, others in kind.items()}
    ids = {word: int(tokenizer.encode([word], 3)[0][0, 1]) for word in words}
    return {ids[word]: [ids[other] for other in others] for word, others in words.items()}


def with_exchanged_words(batch: Batch, others: dict[int, list[int]], rng: random.Random) -> Batch:
    """Returns the batch whose partners are the pairs' own texts with one word exchanged."""
    ids, mask, special = batch.text_ids.clone(), batch.text_mask.clone(), batch.special_mask.clone()
    for own, partner in zip(batch.pairs[:, 1].tolist(), batch.partner.tolist(), strict=True):
        ids[partner], mask[partner], special[partner] = ids[own], mask[own], special[own]
        places = [place for place, token in enumerate(ids[own].tolist()) if token in others]
        place = rng.choice(places)
        ids[partner, place] = rng.choice(others[int(ids[own, place])])
    return replace(batch, text_ids=ids, text_mask=mask, special_mask=special)


def go_on(trained: Trained, recipe: Recipe, steps: int, lr: float, others: dict[int, list[int]]) -> System:
    """Returns a copy of the run's system after further steps of AdamW, the rate falling linearly to 0.

    Args:
        others: words that are exchanged; empty: the loader's partners stay.
    """
    system, rng = copy.deepcopy(trained.system).train(), random.Random(recipe.seed)
    optimizer = torch.optim.AdamW(system.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    tables = recipe.objectives.enabled()
    with open_data(recipe) as data:
        for step in range(steps):
            reseed(recipe.seed, step, 0, 0)
            batch = next(data.train)
            prepared = system.prepare(with_exchanged_words(batch, others, rng) if others else batch)
            losses = system(TrainRequest(prepared))
            total = sum(tables[n].weight * one.sum / one.count.clamp(min=1) for n, one in losses.items())
            optimizer.zero_grad()
            total.backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimizer.step()
    return system


def probes(seed: int, pairs: list[RelationPair]) -> dict[str, list[RelationPair]]:
    """Returns for each kind of word the pairs whose false caption has one such word exchanged."""
    rng, out = random.Random(seed), {}
    for name, kind in KINDS.items():
        changed = []
        for pair in pairs:
            words = pair.true.split(" ")
            place = rng.choice([i for i, word in enumerate(words) if word in kind])
            words[place] = rng.choice(kind[words[place]])
            changed.append(replace(pair, false=" ".join(words)))
        out[name] = changed
    return out


def cells(system: System, recipe: Recipe) -> tuple[float, float]:
    """Returns how often SEGL names the colour and the kind of shape of a cell that holds one."""
    colour, kind, total = 0, 0, 0
    kinds = len(SHAPES)
    with open_data(recipe) as data, data.validation() as batches, torch.no_grad():
        for batch in batches:
            prepared = system.prepare(batch)
            guesses = system(TrainRequest(prepared))["segl"].predictions
            labels = prepared.targets["segl"].labels
            here = labels > 0  # 0 is the background; the classes are colours times kinds
            label, guess = labels[here] - 1, guesses[here] - 1
            total += len(label)
            colour += int(((label // kinds == guess // kinds) & (guess >= 0)).sum())
            kind += int(((label % kinds == guess % kinds) & (guess >= 0)).sum())
    return colour / total, kind / total


def readings(system: System, recipe: Recipe, tokenizer: Tokenizer) -> list[str]:
    """Returns the cells of one row of the table, see `COLUMNS`."""
    system.eval()
    inference = Inference(system, recipe.engine.precision, torch.device("cpu"))
    world, framing = recipe.data.synthetic, Framing.of(recipe)
    asked = probes(0, relation_pairs(200, world.seed, world.image_size, world.max_shapes))

    def images_of(pairs: Sequence[RelationPair]) -> tuple[torch.Tensor, torch.Tensor | None]:
        return together([read_picture(pair.jpeg, framing, "a picture") for pair in pairs], framing)

    out = [
        relation_accuracy(inference, pairs, tokenizer, images_of, recipe.model.text.max_length).value
        for pairs in asked.values()
    ]
    mlm = cast(MLM, system.objectives["mlm"])
    alone = Inference(System(system.model, {"mlm": mlm}), recipe.engine.precision, torch.device("cpu"))
    for kind in KINDS.values():
        with open_data(recipe) as data, data.validation() as batches:
            found = word_accuracy(alone, mlm, batches, single_tokens(kind, tokenizer))
        out.append(found.with_picture.value)
    out += cells(system, recipe)
    with open_data(recipe) as data, data.validation() as batches:
        gallery = Gallery(inference, batches, 256, "first")
    recalls = gallery.names.recalls(gallery.matches(), "first")
    return [f"{value:.1%}" for value in (*out, recalls["TR@1"].value, recalls["IR@1"].value)]


COLUMNS = [
    *(f"ITM: {kind}" for kind in KINDS),
    *(f"MLM: {kind}" for kind in KINDS),
    "SEGL: colour",
    "SEGL: shape",
    "TR R@1",
    "IR R@1",
]


def main() -> None:
    """Prints the readings of the run and, with `--steps`, of the two tries to go on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=5e-4)
    arguments = parser.parse_args()
    trained = load_trained(arguments.run)
    whole = trained.recipe.batch.model_copy(update={"micro_pairs": trained.recipe.batch.global_pairs})
    recipe = trained.recipe.model_copy(update={"batch": whole, "seed": trained.recipe.seed + 1})
    tokenizer = Tokenizer.load(str(arguments.run / "tokenizer"))

    def row(name: str, system: System) -> None:
        print(f"| {name} | " + " | ".join(readings(system, recipe, tokenizer)) + " |", flush=True)

    print("| on held-out scenes | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    row(f"the run, step {trained.step}", trained.system)
    if arguments.steps:
        for name, others in (("the same partners", {}), ("one word exchanged", word_ids(tokenizer))):
            system = go_on(trained, recipe, arguments.steps, arguments.lr, others)
            row(f"{arguments.steps} steps more: {name}", system)


if __name__ == "__main__":
    main()
