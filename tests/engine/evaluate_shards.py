"""Run on each rank by test_evaluate.py: measures an untrained system, and rank 0 writes what came out."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as td

from dsvlp import dist, recipe, system
from dsvlp.data.loader import Loader
from dsvlp.data.opened import open_data
from dsvlp.engine.evaluate import evaluate
from dsvlp.engine.inference import Inference
from dsvlp.engine.probes import match_accuracy, word_accuracy
from dsvlp.engine.retrieval import Gallery


def main(name: str, folder: Path, overrides: list[str]) -> None:
    if int(os.environ["WORLD_SIZE"]) > 1:
        td.init_process_group("gloo")
    loaded = recipe.load("tiny_svl", overrides)
    with open_data(loaded, folder) as data:
        model = system.build(loaded, data.facts)
        engine = Inference(model, "fp32", torch.device("cpu"))
        place = {"rank": dist.rank(), "world": dist.world_size(), "split": "evaluate"}

        def batches(pairs: int) -> Loader:
            return Loader(loaded, [data.held_out], data.tokenizer, **place, pairs=pairs)

        with batches(37) as some:
            losses = evaluate(engine, model, some, dict.fromkeys(model.objectives, 1.0))
        with batches(23) as some:
            gallery = Gallery(engine, some, chunk_pairs=29)
        matrices = {"cosines": gallery.similarities(), "every": gallery.matches()}
        matrices["wanted"] = gallery.names.candidates(matrices["cosines"], "all", 2)
        matrices["chosen"] = gallery.matches(matrices["wanted"])
        with batches(37) as some:
            matching = match_accuracy(engine, some)
        alone = Inference(system.System(model.model, {"mlm": model.objectives["mlm"]}), "fp32", engine.device)
        with batches(23) as some:
            words = word_accuracy(alone, model.objectives["mlm"], some, list(range(5, 60)))
    if dist.rank() == 0:
        counts = [words.with_picture.total, words.with_picture.hits, words.without_picture.hits]
        results = {"losses": losses, "words": counts, "matching": [matching.hits, matching.total]}
        (folder / f"{name}.json").write_text(json.dumps(results))
        np.savez(folder / f"{name}.npz", **vars(gallery.names), **matrices)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
