"""ITM's negatives from the queue in real runs, a step late and at once: two launches each, many claims.

The worker is `queue_worker.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.data.pictures_of_noise import make_dataset, make_tokenizer
from tests.engine.processes import run

pytestmark = pytest.mark.slow

LAYOUTS = ("zero1", "zero3")


@pytest.fixture(scope="module", params=[1, 0], ids=["a step late", "at once"])
def delay(request: pytest.FixtureRequest) -> int:
    """The recipe's `negatives_delay`."""
    return int(request.param)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, delay: int) -> dict[int, Any]:
    """What two processes and one found, by their number."""
    folder = tmp_path_factory.mktemp("queue")
    dataset = make_dataset(folder, "noise", [2] * 20)
    make_tokenizer([dataset]).save(folder / "tokenizer")
    paths = (str(dataset.path), str(folder / "tokenizer"))
    for world, layouts in ((2, LAYOUTS), (1, LAYOUTS[:1])):
        arguments = (",".join(layouts), str(folder), str(delay), *paths)
        run("queue_worker.py", *arguments, world=world, scratch=folder, seconds=600)
    return {world: json.loads((folder / f"queue-{world}.json").read_text()) for world in (1, 2)}


def losses(steps: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [step["losses"] for step in steps]


def test_negatives_come_from_the_queue_once_it_is_filled(results: dict[int, Any], delay: int) -> None:
    steps = results[1]["whole"]["steps"]
    shares = [step["losses"]["metrics/itm/from_queue"] for step in steps]
    first = 1 + delay  # an empty queue draws nothing; then, with a delay, the first pool is drawn
    assert not any(shares[:first]) and all(share > 0 for share in shares[first:])
    drawn = [[sample for pair in step["drawn"] for sample in pair] for step in steps]
    assert set(drawn[0]) == {-1} and all(len(samples) == 32 for samples in drawn)
    for samples, share in zip(drawn[1:], shares[1:], strict=True):
        assert all(delay - 1 <= sample < 40 for sample in samples)
        if not delay:
            assert sum(sample >= 0 for sample in samples) == pytest.approx(share * 32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_is_bit_for_bit_the_same(results: dict[int, Any], layout: str) -> None:
    found = results[2][layout]
    assert found["parts"]["steps"] == found["whole"]["steps"][3:]
    assert found["parts"]["digest"] == found["whole"]["digest"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_is_one_that_goes_on_after_a_step_that_was_not_finite(
    results: dict[int, Any], layout: str
) -> None:
    found = results[2][layout]
    assert not found["whole"]["poisoned"]["finite"] and found["whole"]["after"]["finite"]
    assert found["after"]["steps"] == [found["whole"]["after"]]
    assert found["after"]["digest"] == found["whole"]["last digest"]


def test_two_processes_draw_and_learn_what_one_does(results: dict[int, Any]) -> None:
    one = results[1]["whole"]["steps"]
    for layout in LAYOUTS:
        two = results[2][layout]["whole"]["steps"]
        assert [step["drawn"] for step in one] == [step["drawn"] for step in two]
        for mine, others in zip(losses(one), losses(two), strict=True):
            assert mine == pytest.approx(others, rel=1e-5, abs=1e-6)


def test_one_process_goes_on_from_two_in_another_stage(results: dict[int, Any]) -> None:
    whole, back = results[2]["zero3"]["whole"]["steps"][3:], results[1]["back"]["steps"]
    assert [step["drawn"] for step in whole] == [step["drawn"] for step in back]
    for mine, others in zip(losses(whole), losses(back), strict=True):
        assert mine == pytest.approx(others, rel=1e-5, abs=1e-6)
