"""What a step sends: the textbook's volumes, and how they grow."""

import pytest

from dsvlp import recipe
from dsvlp.accounting import communication, flops
from dsvlp.accounting.communication import Network, traffic
from dsvlp.accounting.layout import Layout
from dsvlp.engine import dsconfig

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")


def layout(name: str) -> Layout:
    return Layout.from_json(name, dsconfig.load_layout(name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_process_sends_nothing(name):
    shown = recipe.load("pretrain_fiber")
    assert traffic(shown, layout(name), 1, 512, 8).total == 0


@pytest.mark.parametrize(("name", "models"), [("zero0", 2), ("zero1", 3), ("zero2", 3), ("zero3", 2)])
def test_many_processes_send_the_textbooks_multiples_of_the_model(name, models):
    """ZeRO, section 7: 2 psi for stages 0 to 2 with a reduce-scatter, 3 psi for stage 3. DeepSpeed 0.19
    all-reduces in stages 1 and 2, 3 psi; and stage 3 keeps this model from forward to backward, 2 psi."""
    shown = recipe.load("pretrain_svl")
    sent = traffic(shown, layout(name), 4096, 1, 1)
    assert sent.total == pytest.approx(models * 4 * flops.parameters(shown), rel=0.001)


def test_accumulation_multiplies_what_stages_2_and_3_send():
    shown = recipe.load("pretrain_svl")

    def sent(name: str, times: int) -> float:
        return traffic(shown, layout(name), 8, 64 // times, times).total

    for name in ("zero0", "zero1"):
        assert sent(name, 4) == sent(name, 1)
    assert sent("zero2", 4) > 2.5 * sent("zero2", 1)
    assert sent("zero3", 4) == 4 * sent("zero3", 1)


def test_gathered_negatives_move_more_than_the_gradients():
    """FIBER's prefixes, 24 x 24 cells of 512 and 40 words of 768 of 4096 pairs: forth bf16, back fp32."""
    shown = recipe.load("pretrain_fiber")
    sent = traffic(shown, layout("zero1"), 64, 8, 8)
    prefix = 24 * 24 * 512 + 40 * 768
    assert sent.prefixes == pytest.approx((2 + 4) * 4096 * prefix * 63 / 64)
    assert sent.prefixes > 2 * sent.reduced
    full = recipe.load("pretrain_fiber", ["engine.precision=fp32"])
    assert traffic(full, layout("zero1"), 64, 8, 8).prefixes == pytest.approx(sent.prefixes * 8 / 6)


def test_the_slower_of_link_and_network_sets_the_pace():
    sent = communication.Traffic(100e9, 0, 0, 0)
    assert sent.seconds(Network(50e9)) == 2
    assert sent.seconds(Network(50e9, 100e9)) == 2
    assert sent.seconds(Network(50e9, 10e9)) == 10
