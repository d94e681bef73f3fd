"""Evaluation does not depend on the number of processes, and agrees with slow references."""

import json

import numpy as np
import pytest
import torch

from dsvlp import recipe, system
from dsvlp.data.frames import Framing
from dsvlp.data.loader import Loader
from dsvlp.data.opened import open_data
from dsvlp.data.reading import read_picture
from dsvlp.data.synthetic import relation_pairs
from dsvlp.engine.evaluate import evaluate
from dsvlp.engine.inference import Inference, load_weights
from dsvlp.engine.probes import hide_one_word, match_accuracy, relation_accuracy, single_tokens
from dsvlp.engine.retrieval import Gallery
from dsvlp.errors import CheckpointError, RunError
from dsvlp.passes import select
from dsvlp.system import EmbedRequest, ImageRequest, MatchRequest, TextRequest, TrainRequest
from tests.engine.processes import run
from tests.engine.test_train import SMALL

SETTINGS = [
    *SMALL,
    "batch.micro_pairs=4",
    "batch.global_pairs=16",
    "objectives.ssul.cell=16",
    "objectives.itc.view=clean",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def world(folder):
    """Returns (recipe, data, untrained system) of the small synthetic world."""
    loaded = recipe.load("tiny_svl", SETTINGS)
    with open_data(loaded, folder) as data:
        yield loaded, data, system.build(loaded, data.facts)


def batches(world, pairs):
    loaded, data, _ = world
    with Loader(
        loaded, [data.held_out], data.tokenizer, rank=0, world=1, split="evaluate", pairs=pairs
    ) as some:
        return list(some)


def engine_of(model):
    return Inference(model, "fp32", torch.device("cpu"))


def test_two_processes_measure_what_one_measures(folder, world):
    for name, processes in (("one", 1), ("two", 2)):
        run("evaluate_shards.py", name, str(folder), *SETTINGS, world=processes, scratch=folder)
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["losses"].keys() == two["losses"].keys()
    for key, value in one["losses"].items():
        assert two["losses"][key] == pytest.approx(value, rel=1e-5), key
    assert one["losses"]["count/itm"] == two["losses"]["count/itm"] == 37
    assert one["words"] == two["words"] and one["words"][0] > 10
    first, second = (np.load(folder / f"{name}.npz") for name in ("one", "two"))
    for field in ("image_of_text", "image_rows", "samples", "wanted"):
        assert first[field].tolist() == second[field].tolist()
    for field in ("cosines", "every", "chosen"):
        assert np.allclose(first[field], second[field], atol=1e-6), field
    assert one["matching"] == two["matching"] and one["matching"][1] > 60


def test_cached_scores_are_those_of_each_pair_by_itself(world):
    _, _, model = world
    some = batches(world, 9)
    engine = engine_of(model)
    gallery = Gallery(engine, some, chunk_pairs=7)
    names, scores = gallery.names, gallery.matches()
    images, texts = {}, {}
    for batch in some:
        for pair in torch.nonzero(batch.weight > 0).flatten().tolist():
            image, text = batch.pairs[pair].tolist()
            images[int(batch.rows[image])] = batch.images[image : image + 1]
            texts[int(batch.samples[pair])] = (
                batch.text_ids[text : text + 1],
                batch.text_mask[text : text + 1],
            )
    assert sorted(images) == names.image_rows.tolist() and sorted(texts) == names.samples.tolist()
    cosines = gallery.similarities()
    wanted = np.random.default_rng(0).random(scores.shape) < 0.3
    chosen = gallery.matches(wanted)
    assert np.isneginf(chosen[~wanted]).all() and np.allclose(chosen[wanted], scores[wanted], atol=1e-6)
    with torch.no_grad():
        for row, image in enumerate(names.image_rows):
            for column, sample in enumerate(names.samples):
                image_states = model.model.encode_image(images[image])
                text_states = model.model.encode_text(*texts[sample])
                _, score = engine(MatchRequest(image_states, text_states))
                assert scores[row, column] == pytest.approx(score.item(), abs=1e-5)
                one, other = engine(EmbedRequest(image_states, text_states))
                assert cosines[row, column] == pytest.approx(float((one * other).sum()), abs=1e-5)


def test_first_captions_are_a_part_of_all(world):
    _, _, model = world
    some = batches(world, 60)
    every = Gallery(engine_of(model), some, 64)
    first = Gallery(engine_of(model), some, 64, captions="first")
    assert len(first.names.samples) == len(first.names.image_rows) < len(every.names.samples)
    recalls = [one.names.recalls(one.similarities(), "first") for one in (first, every)]
    assert recalls[0] == recalls[1]


def test_reranking_scores_the_candidates_of_both_directions_and_equals_scoring_everything(world):
    _, _, model = world
    gallery = Gallery(engine_of(model), batches(world, 60), 64)
    names, cosines, everything = gallery.names, gallery.similarities(), gallery.matches()
    for captions in ("first", "all"):
        wanted = names.candidates(cosines, captions, 3)
        chosen = gallery.matches(wanted)
        assert wanted.sum() <= 3 * sum(cosines.shape)
        found = names.recalls_reranked(cosines, chosen, captions, 3)
        assert found == names.recalls_reranked(cosines, everything, captions, 3)
        for cut in ("TR@5", "IR@5", "TR@10", "IR@10"):  # the first three stay the first three
            assert found[cut] == names.recalls(cosines, captions)[cut]
        whole = len(names.samples)
        assert names.recalls_reranked(cosines, everything, captions, whole) == names.recalls(
            everything, captions
        )


def test_matching_random_texts_agrees_with_each_pair_by_itself(world):
    _, _, model = world
    some, engine = batches(world, 10), engine_of(model)
    right = total = 0
    for batch in some:
        image, text = engine(ImageRequest(batch.images)), engine(TextRequest(batch.text_ids, batch.text_mask))
        for pair, other in enumerate([1, 2, 3, 0]):
            for partner in (pair, other):
                rows = batch.pairs[[pair], 0], batch.pairs[[partner], 1]
                same_image = partner != pair and batch.rows[pair] == batch.rows[other]
                if not batch.weight[[pair, partner]].all() or same_image:
                    continue
                _, logit = engine(MatchRequest(select(image, rows[0]), select(text, rows[1])))
                right += int((logit.item() > 0) == (partner == pair))
                total += 1
    found = match_accuracy(engine, some)
    assert (found.hits, found.total, found.chance) == (right, total, 0.5)
    assert 10 < total <= 20


def test_losses_are_means_over_all_targets_and_stand_beside_their_constant(world):
    _, _, model = world
    some = batches(world, 10)  # three micro-batches of 4: the last is padded
    found = evaluate(
        engine_of(model), model, some, {"itc": 1.0, "itm": 2.0, "mlm": 1.0, "ssul": 1.0, "segl": 1.0}
    )
    sums = dict.fromkeys(model.objectives, (0.0, 0.0))
    with torch.no_grad():
        for batch in some:
            for name, loss in model(TrainRequest(model.prepare(batch))).items():
                sums[name] = (sums[name][0] + float(loss.sum), sums[name][1] + float(loss.count))
    for name, (value, count) in sums.items():
        assert found[f"loss/{name}"] == pytest.approx(value / count, rel=1e-6)
    assert found["count/itm"] == 10
    expected = 2 * found["loss/itm"] + sum(found[f"loss/{name}"] for name in ("itc", "mlm", "ssul", "segl"))
    assert found["loss/total"] == pytest.approx(expected)
    assert found["constant/itm"] <= np.log(2) + 1e-6 and 0.5 <= found["constant/itm/accuracy"] < 1
    assert all(found[f"constant/{name}"] > 0 for name in sums)


def test_no_data_is_an_error_of_ours(world):
    with pytest.raises(RunError, match="no batch"):
        evaluate(engine_of(world[2]), world[2], [], {})
    with pytest.raises(RunError, match="no batch"):
        Gallery(engine_of(world[2]), [], 8)


def test_one_wanted_word_a_text_is_hidden_and_it_is_the_target(world):
    _, data, _ = world
    wanted = torch.tensor(single_tokens(["red", "green", "blue", "yellow"], data.tokenizer))
    assert len(wanted) == 4
    (batch, *_) = batches(world, 4)
    view, targets = hide_one_word(batch, wanted, data.tokenizer.mask_id)
    original = batch.text_ids[batch.pairs[:, 1]]
    for row in range(len(view.pairs)):
        changed = torch.nonzero(view.text_ids[row] != original[row]).flatten().tolist()
        has_one = bool(torch.isin(original[row], wanted).any())
        assert len(changed) == int(has_one) == int(targets.weight[row])
        for position in changed:
            assert original[row, position] in wanted
            assert view.text_ids[row, position] == data.tokenizer.mask_id
            assert targets.positions[row] == row * original.shape[1] + position
            assert targets.labels[row] == original[row, position]
    assert targets.count == targets.weight.sum()


def test_the_relation_probe_counts_higher_scores_of_the_true_caption(world):
    _, data, _ = world
    pairs = relation_pairs(12, seed=0, image_size=64)

    class Reader:
        """Knows the answer to the first two thirds: the true captions' ids, in order."""

        device = torch.device("cpu")

        def __init__(self):
            true = [pair.true for pair in pairs[:8]]
            self.known = {tuple(ids) for ids in data.tokenizer.encode(true, 24)[0].tolist()}
            self.texts = None

        def __call__(self, request):
            if isinstance(request, MatchRequest):
                return None, torch.tensor([1.0 if tuple(ids) in self.known else 0.0 for ids in self.texts])
            if hasattr(request, "text_ids"):
                self.texts = request.text_ids.tolist()
            size = len(getattr(request, "text_ids", getattr(request, "images", None)))
            return system.States(torch.zeros(size, 1, 1), torch.ones(size, 1, dtype=torch.bool))

        def eval(self): ...

        def train(self): ...

    def grey(some):
        return torch.zeros(len(some), 3, 32, 32), None

    found = relation_accuracy(Reader(), pairs, data.tokenizer, grey, 24, chunk=5)
    assert found.total == 12
    assert 8 - 1 <= found.hits <= 9  # a false caption may be another picture's true one


def test_a_probes_picture_is_the_evaluations(world):
    first = {pair.image: pair.jpeg for pair in relation_pairs(48, seed=0, image_size=64)}
    (batch, *_) = batches(world, 4)
    for index, row in enumerate(batch.rows.tolist()):
        if row in first:
            assert torch.equal(read_picture(first[row], Framing(32), "it"), batch.images[index])
    assert set(batch.rows.tolist()) & first.keys()


def test_weights_that_do_not_fit_are_named(world):
    _, _, model = world
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    name = "model.pooler.dense.weight"
    with pytest.raises(CheckpointError, match=rf"{name}: \(3,\) in the file, \(32, 32\) in the system"):
        load_weights(model, {**weights, name: torch.zeros(3)}, "step-7")
    del weights[name]
    with pytest.raises(CheckpointError, match=rf"{name}: absent in the file"):
        load_weights(model, weights, "step-7")
