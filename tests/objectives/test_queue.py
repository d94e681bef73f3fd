from collections import deque

import pytest
import torch
from torch import Tensor

from dsvlp.objectives.queue import EMPTY, NOISE, Queue

YES, NO = torch.tensor(True), torch.tensor(False)


def pairs(first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns features, image rows and samples that tell which pair they are, and that all count."""
    ids = torch.arange(first, first + count)
    return ids[:, None] + torch.zeros(2), -ids[:, None] + torch.zeros(2), ids // 2, ids, ids >= 0


def content(queue: Queue) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in queue.named_buffers()}


@pytest.mark.parametrize(("size", "step"), [(10, 4), (10, 10), (10, 15), (7, 3)])
def test_the_queue_holds_the_last_pairs(size: int, step: int) -> None:
    queue, reference = Queue(size, 2, noise=False), deque([-1] * size, maxlen=size)
    for number in range(6):
        queue.remember(*pairs(number * step, step))
        queue.settle(YES)
        reference.extend(range(number * step, (number + 1) * step))
        oldest_first = [(int(queue.place) + k) % size for k in range(size)]
        assert queue.samples[oldest_first].tolist() == list(reference)
        filled = queue.samples >= 0
        assert torch.equal(queue.image[filled, 0].long(), queue.samples[filled])
        assert torch.equal(queue.text[filled, 1].long(), -queue.samples[filled])
        assert torch.equal(queue.rows[filled], queue.samples[filled] // 2)
        assert (queue.rows[~filled] == EMPTY).all()


def test_the_cut_of_a_step_does_not_matter() -> None:
    whole, cut = Queue(10, 2, noise=False), Queue(10, 2, noise=False)
    for number in range(4):
        whole.remember(*pairs(number * 8, 8))
        for quarter in range(4):
            cut.remember(*pairs(number * 8 + quarter * 2, 2))
        for queue in (whole, cut):
            queue.settle(YES)
        assert all(torch.equal(value, content(cut)[name]) for name, value in content(whole).items())


@pytest.mark.parametrize("within", [False, True])
def test_a_step_that_is_not_finite_leaves_the_queue_as_it_was(within: bool) -> None:
    queue = Queue(6, 2, noise=False)
    queue.remember(*pairs(0, 4))
    queue.settle(YES)
    before = content(queue)
    for micro in range(3):
        image, text, *names = pairs(100 + 3 * micro, 3)
        queue.remember(image * float("nan"), text, *names)
        if within:
            queue.move()
    queue.settle(NO)
    assert all(torch.equal(value, before[name]) for name, value in content(queue).items())
    queue.remember(*pairs(4, 4))
    queue.settle(YES)
    assert sorted(queue.samples.tolist()) == [2, 3, 4, 5, 6, 7]


def test_empty_places_and_pairs_of_weight_zero_are_no_negatives_and_noise_is() -> None:
    images = torch.tensor([0, 5])
    queue = Queue(6, 2, noise=False)
    assert not queue.negatives(images, same_image=True).any()
    image, text, rows, samples, _ = pairs(0, 4)  # images 0, 0, 1, 1
    queue.remember(image, text, rows, samples, torch.tensor([True, True, False, True]))
    queue.settle(YES)
    expected = [[False, False, False, True, False, False], [True, True, False, True, False, False]]
    assert queue.negatives(images, same_image=False).tolist() == expected
    assert queue.negatives(images, same_image=True).tolist() == [expected[1], expected[1]]
    noisy = Queue(6, 2, noise=True)
    assert (noisy.rows == NOISE).all() and noisy.image.std() > 0.3
    assert noisy.negatives(images, same_image=False).all()


def test_nothing_is_left_over_after_a_step() -> None:
    queue, fresh = Queue(6, 2, noise=False), Queue(6, 2, noise=True)
    queue.remember(*pairs(0, 4))
    queue.settle(YES)
    fresh.load_state_dict(queue.state_dict())
    for one in (queue, fresh):
        one.remember(*pairs(4, 4))
        one.settle(YES)
        one.settle(YES)
    assert all(torch.equal(value, content(fresh)[name]) for name, value in content(queue).items())
