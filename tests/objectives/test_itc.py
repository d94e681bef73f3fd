from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsvlp.errors import RecipeError
from dsvlp.objectives.itc import ITC, TEMPERATURE_BOUNDS
from dsvlp.passes import Passes
from dsvlp.recipe import ITC as Table
from dsvlp.system import EmbedRequest, ImageRequest, TextRequest, build
from dsvlp.types import Batch, Loss, States
from tests.batches import make_batch, make_facts, make_fiber_recipe, make_recipe

WIDTH = 8


class Towers:
    """Passes whose unimodal states are given."""

    def __init__(self, batch: Batch, image: Tensor, text: Tensor) -> None:
        self._batch, self.similarity = batch, None
        self._image = States(image, torch.ones(image.shape[:2], dtype=torch.bool))
        self._text = States(text, torch.ones(text.shape[:2], dtype=torch.bool))

    def view(self, name: str) -> Batch:
        return self._batch

    def unimodal_image(self, view: str) -> States:
        return self._image

    def unimodal_text(self, view: str) -> States:
        return self._text


def objective(**table: Any) -> ITC:
    torch.manual_seed(0)
    return ITC(Table(**table), WIDTH, 6, 5)


def towers(batch: Batch, seed: int = 0) -> Towers:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(len(batch.images), 4, 6, generator=draw)
    return Towers(batch, image, torch.randn(len(batch.text_ids), 7, 5, generator=draw))


def run(itc: ITC, batch: Batch, seed: int = 0) -> tuple[Loss, Towers]:
    passes = towers(batch, seed)
    view, targets = itc.prepare(batch)
    assert view is batch
    return itc.loss(passes, targets, itc.begin(passes, targets)), passes


def past(itc: ITC, batch: Batch) -> Batch:
    """Lets a step go by, and returns the next step's batch: half of its images were in the first."""
    run(itc, batch, seed=1)
    itc.after_step(torch.tensor(True))
    return replace(batch, rows=batch.rows + len(batch.rows) // 2, samples=batch.samples + 100)


def slow_loss(itc: ITC, batch: Batch, passes: Towers) -> Tensor:
    """Returns the summed loss by a loop in float64, keys with gradient."""
    itc = itc.double()
    image = itc.embed_image(double(passes.unimodal_image("")))[batch.pairs[:, 0]].double()
    text = itc.embed_text(double(passes.unimodal_text("")))[batch.pairs[:, 1]].double()
    rows, queue, table = batch.rows[batch.pairs[:, 0]].tolist(), itc.queue, itc.table
    total = torch.zeros((), dtype=torch.float64)
    for p in range(len(text)):
        for queries, keys, old in ((image, text, "text"), (text, image, "image")):
            logits, own = [], -1
            for k in range(len(keys)):
                if k != p and (batch.weight[k] == 0 or (rows[k] == rows[p] and table.same_image == "masked")):
                    continue
                logits.append(queries[p] @ keys[k] / itc.temperature)
                own = len(logits) - 1 if k == p else own
            for place in range(table.queue):
                row = int(queue.rows[place])
                if row != -1 and (row != rows[p] or table.same_image == "negative"):
                    logits.append(queries[p] @ getattr(queue, old)[place].double() / itc.temperature)
            total = total - torch.stack(logits).log_softmax(0)[own] * batch.weight[p] / 2
    return total


def double(states: States) -> States:
    return States(states.tokens.double(), states.mask)


@pytest.mark.parametrize("start", ["empty", "noise"])
@pytest.mark.parametrize("queue", [0, 6, 20])
@pytest.mark.parametrize("same_image", ["masked", "negative"])
def test_loss_and_gradients_agree_with_a_loop(same_image: str, queue: int, start: str) -> None:
    itc = objective(same_image=same_image, queue=queue, queue_start=start)
    batch = replace(
        make_batch(pairs=8, captions=2, partners=False), weight=torch.tensor([1.0, 1, 1, 0, 1, 1, 0, 1])
    )
    batch = past(itc, batch) if queue else batch
    loss, passes = run(itc, batch)
    loss.sum.backward()
    found = [p.grad.clone() for p in itc.parameters()]
    itc.zero_grad()
    expected = slow_loss(itc, batch, passes)
    expected.backward()
    assert float(loss.count) == 6
    assert float(loss.sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for one, other in zip(found, itc.parameters(), strict=True):
        assert torch.allclose(one.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_metrics_agree_with_the_definition() -> None:
    itc, batch = objective(), make_batch(pairs=6, captions=3, partners=False)
    loss, passes = run(itc, batch)
    image = itc.embed_image(passes.unimodal_image(""))[batch.pairs[:, 0]]
    cosines = (image @ itc.embed_text(passes.unimodal_text("")).T).detach()
    other = batch.pairs[:, 0, None] != batch.pairs[:, 0]
    allowed = other | torch.eye(6, dtype=torch.bool)
    for name, values in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        best = values.masked_fill(~allowed, -2).argmax(1)
        right, count = loss.metrics[f"{name}_accuracy"]
        assert (int(right), int(count)) == (int((best == torch.arange(6)).sum()), 6)
    both = [loss.metrics[f"{name}_accuracy"][0] for name in ("image_to_text", "text_to_image")]
    assert [float(v) for v in loss.metrics["accuracy"]] == [float(sum(both)), 12]
    assert [float(v) for v in loss.metrics["temperature"]] == pytest.approx([0.07, 1])
    assert [float(v) for v in loss.metrics["masked_pairs"]] == [12, 6]  # two other captions a pair


def test_keys_without_gradient_leave_the_value_and_stop_the_other_side() -> None:
    batch = make_batch(pairs=6, partners=False)
    whole, part = objective(), objective(keys_gradient=False)
    value, passes = run(whole, batch)
    same, _ = run(part, batch)
    assert torch.equal(value.sum, same.sum)
    same.sum.backward()
    image, text = part.embed_image(passes.unimodal_image("")), part.embed_text(passes.unimodal_text(""))
    label, t = torch.arange(6), part.temperature
    entropy = torch.nn.functional.cross_entropy
    forth = entropy(image @ text.detach().T / t, label) + entropy(text @ image.detach().T / t, label)
    expected = torch.autograd.grad(3 * forth, [p for p in part.parameters()])
    for parameter, gradient in zip(part.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-4)


@pytest.mark.parametrize("value", [1e-5, 3.0])
def test_the_temperature_is_used_within_its_bounds(value: float) -> None:
    itc = objective(temperature=value)
    (scaled, temperature) = itc(torch.ones(()))
    bound = min(max(value, TEMPERATURE_BOUNDS[0]), TEMPERATURE_BOUNDS[1])
    assert float(temperature) == pytest.approx(bound)
    assert float(scaled.detach()) == pytest.approx(1 / bound)


@pytest.mark.parametrize("bound", TEMPERATURE_BOUNDS)
def test_a_temperature_on_its_bound_still_learns(bound: float) -> None:
    itc = objective(temperature=bound)
    itc(torch.ones(()))[0].backward()
    assert itc.temperature.grad is not None and float(itc.temperature.grad) < 0


def test_evaluation_neither_reads_nor_fills_the_queue() -> None:
    itc, batch = objective(queue=12), make_batch(pairs=6, partners=False)
    expected, _ = run(objective(), batch)
    batch_after = past(itc, batch)
    before = {name: buffer.clone() for name, buffer in itc.queue.named_buffers()}
    itc.eval()
    loss, _ = run(itc, batch)
    itc.after_step(torch.tensor(True))
    assert torch.equal(loss.sum, expected.sum)
    assert all(torch.equal(before[name], buffer) for name, buffer in itc.queue.named_buffers())
    itc.train()
    assert float(run(itc, batch_after)[0].sum.detach()) > float(run(objective(), batch_after)[0].sum.detach())


@pytest.mark.parametrize("moves", ["step", "micro_step"])
def test_the_second_micro_batch_sees_the_first_only_where_the_queue_moves_within_a_step(moves: str) -> None:
    itc, batch = objective(queue=12, queue_moves=moves), make_batch(pairs=6, partners=False)
    first, _ = run(itc, batch, seed=1)
    second, _ = run(itc, replace(batch, rows=batch.rows + 6), seed=2)
    alone, _ = run(objective(), replace(batch, rows=batch.rows + 6), seed=2)
    assert torch.equal(second.sum, alone.sum) is (moves == "step")
    first.sum.backward()
    second.sum.backward()  # the queue moved between forward and backward of nobody
    itc.after_step(torch.tensor(True))
    assert itc.queue.rows.tolist() == list(range(12))


def test_a_loss_of_equal_features_is_the_constant_predictors() -> None:
    itc, batch = objective(), make_batch(pairs=8, captions=2, partners=False)
    batch = replace(batch, weight=torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1]))
    _, targets = itc.prepare(batch)
    passes = Towers(batch, torch.ones(4, 3, 6), torch.ones(8, 7, 5))
    loss = itc.loss(passes, targets, itc.begin(passes, targets))
    constant = itc.constant_loss(itc.constant(targets))
    assert float((loss.sum / loss.count).detach()) == pytest.approx(constant["loss"], rel=1e-5)
    # the seven pairs that count have 6, 6, 7, 6, 6, 6, 6 keys: a pair's own, and those of other images
    assert constant["accuracy"] == pytest.approx((6 / 6 + 1 / 7) / 7)


def test_similarity_is_the_logits_of_the_batch_without_the_queues() -> None:
    itc, batch = objective(queue=12), make_batch(pairs=6, captions=2, partners=False)
    batch = past(itc, batch)
    _, passes = run(itc, batch)
    found = passes.similarity
    assert found is not None and found.first == 0
    assert found.image_to_text.shape == found.text_to_image.shape == (6, 6)
    assert not found.image_to_text.requires_grad
    same = batch.pairs[:, 0, None] == batch.pairs[:, 0]
    masked = same & ~torch.eye(6, dtype=torch.bool)
    for logits in (found.image_to_text, found.text_to_image):
        assert torch.equal(logits == -torch.inf, masked)
    assert torch.allclose(found.image_to_text.T[~masked], found.text_to_image[~masked], atol=1e-4)


def test_features_are_unit_vectors_that_do_not_see_masked_tokens() -> None:
    itc = objective()
    tokens = torch.randn(3, 4, 6)
    mask = torch.tensor([[True, True, False, False]]).expand(3, -1)
    features = itc.embed_image(States(tokens, mask))
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-6)
    assert torch.allclose(features, itc.embed_image(States(tokens[:, :2], mask[:, :2])), atol=1e-6)


@pytest.mark.parametrize("editor", ["mlm", "itm"])
def test_a_view_that_others_change_is_refused(editor: str) -> None:
    with pytest.raises(RecipeError, match=rf"objectives\.{editor} changes its view 'joint'.*clean"):
        make_recipe("objectives.itc={}", objectives=(editor,))


def test_a_batch_of_one_image_is_refused() -> None:
    with pytest.raises(RecipeError, match="contrasts a batch of one image with nothing"):
        make_recipe("objectives.itc.view=clean", "batch.micro_pairs=1", objectives=("itm",))


def test_the_widths_are_the_models() -> None:
    model = SimpleNamespace(width=8, image_width=6, text_width=5)
    itc = ITC.from_recipe(Table(), None, model, None)
    assert (itc.image_transform.in_features, itc.text_transform.in_features) == (6, 5)


def test_retrieval_embeds_as_training_does() -> None:
    system = build(make_fiber_recipe(), make_facts()).eval()
    batch = make_batch(8, captions=2, partners=False, image_size=64)
    image, text = system(ImageRequest(batch.images)), system(TextRequest(batch.text_ids, batch.text_mask))
    images, texts = system(EmbedRequest(image, text))
    assert system(EmbedRequest(text=text))[0] is None and system(EmbedRequest(image=image))[1] is None
    prepared = system.prepare(batch)
    passes = Passes(system.model, prepared.views)
    system.objectives["itc"].begin(passes, prepared.targets["itc"])
    assert passes.similarity is not None
    logits = passes.similarity.image_to_text
    expected = (images @ texts.T / 0.07)[batch.pairs[:, 0]]
    there = logits > -torch.inf
    assert torch.allclose(logits[there], expected[there], atol=1e-4)


def test_the_parameters_have_the_names_that_published_weights_are_mapped_to() -> None:
    parts = ("image_transform", "text_transform", "image_pooler.dense", "text_pooler.dense")
    expected = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")} | {"temperature"}
    assert {name for name, _ in objective(queue=4).named_parameters()} == expected
