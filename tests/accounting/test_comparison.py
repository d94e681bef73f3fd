from dataclasses import replace

import pytest

from dsvlp.accounting.comparison import Comparison, compare, sentence
from dsvlp.accounting.hours import total
from tests.accounting.test_hours import CHARGE

# 1 % of the paper's pairs in 1 H200-hour.
RUN = replace(
    CHARGE,
    seconds=900.0,
    devices=4,
    device_name="NVIDIA H200",
    samples=0.75e6,
    redone_samples=0,
    flops=0.75e6 * 115e9,
)


def test_svl_is_projected_to_the_papers_pairs_and_told_plain_and_by_the_cards_peaks():
    found = compare(total("a", [RUN]), RUN)
    assert isinstance(found, Comparison)
    assert found.hours == pytest.approx(100.0)
    assert found.plain == pytest.approx(4.7)
    assert found.adjusted == pytest.approx(4.7 * 125 / 989)
    assert "470 V100-hours for 75 M pairs" in sentence(found) and "projected" in sentence(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"system": "fiber"}, "the paper of fiber gives no hours"),
        ({"system": "pixelbert"}, "the paper of pixelbert gives no hours"),
        ({"system": ""}, "the paper of its system gives no hours"),
        ({"device_name": ""}, "no GPU with a known peak"),
        ({"samples": 0}, "no GPU with a known peak"),
        ({"flops": 0.75e6 * 0.3e9}, "its pairs cost 0.3 GFLOP, the paper's 117"),
    ],
)
def test_what_cannot_be_compared_says_why(change, why):
    run = replace(RUN, **change)
    assert why in sentence(compare(total("a", [run]), run))
