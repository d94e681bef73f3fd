"""The plan's arithmetic: worlds, saves, time limits, hours; what is refused, and with which words."""

from dataclasses import replace
from typing import Any

import pytest

from dsvlp import recipe
from dsvlp.accounting import hardware, plan, saving, worlds
from dsvlp.accounting.assumptions import Assumptions, measured
from dsvlp.accounting.layout import Layout
from dsvlp.accounting.papers import PAPERS
from dsvlp.accounting.price import price
from dsvlp.engine import dsconfig
from dsvlp.errors import RecipeError

LAYOUTS = [
    Layout.from_json(name, dsconfig.load_layout(name))
    for name in ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
]
H200 = hardware.named("h200")


def planned(shown: recipe.Recipe, nodes: int = 1, gpus: int = 8, **more: Any) -> plan.Plan:
    limit = more.pop("time_limit_hours", None)
    device = more.pop("device", H200)
    cluster = plan.Cluster(nodes, gpus, device, limit)
    return plan.plan(shown, LAYOUTS, cluster, Assumptions(**more))


@pytest.mark.parametrize(
    "name",
    [
        "pretrain_svl",
        "pretrain_fiber",
        "pretrain_fiber_grouped",
        "tiny_fiber",
        "pretrain_pixelbert_grouped",
        "pretrain_semvlp",
    ],
)
def test_valid_worlds_are_all_that_the_recipe_accepts(name):
    shown = recipe.load(name)
    accepted = []
    for world in range(1, shown.batch.global_pairs + 1):
        try:
            recipe.accumulation(shown, world)
            accepted.append(world)
        except RecipeError:
            pass
    assert worlds.valid_worlds(shown) == accepted


def test_a_world_that_does_not_divide_the_batch_is_refused_with_those_near_it():
    with pytest.raises(RecipeError, match=r"24 GPUs .* one of 1, 2, 4, 8, 16\."):
        planned(recipe.load("pretrain_svl"), nodes=3)
    with pytest.raises(RecipeError, match=r"near it .*1000, 1600"):
        worlds.check_world(recipe.load("pretrain_svl", ["batch.global_pairs=1024000"]), 1001)


@pytest.mark.parametrize("between", [600.0, 36e3, 36e5])
@pytest.mark.parametrize("stall", [0.05, 3.0, 100.0])
def test_young_and_daly_lose_least(stall, between):
    """Against a search over intervals; Daly counts otherwise, and is close to it while saves are short."""

    def lost(interval: float) -> float:
        return saving.lost_share(interval, stall, between, 0.0)

    least = min(lost(between * 1.02**-power) for power in range(1000))
    assert lost(saving.young(stall, between)) == pytest.approx(least, rel=0.01)
    assert saving.daly(stall, between) <= saving.young(stall, between)
    if stall < between / 100:
        assert lost(saving.daly(stall, between)) < 1.1 * least


def test_more_gpus_are_interrupted_more_often_and_save_more_often():
    shown = recipe.load("pretrain_fiber")
    few, many = (planned(shown, nodes).checkpointing for nodes in (1, 64))
    assert many.between_interruptions_seconds == few.between_interruptions_seconds / 64
    assert few.between_interruptions_seconds == pytest.approx(50_000 * 3600 / 8)


def test_a_time_limit_cuts_the_run_into_allocations():
    found = planned(recipe.load("pretrain_fiber"), time_limit_hours=4.0)
    assert found.allocations is not None
    each, step = found.allocations.steps_each, found.speed.step_seconds
    assert each * step <= 4 * 3600 - 240 < (each + 1) * step
    assert found.allocations.requeues * each < 100_000 <= (found.allocations.requeues + 1) * each


def test_a_time_limit_shorter_than_a_checkpoint_interval_is_refused():
    with pytest.raises(RecipeError, match=r"checkpoint interval of 1000.*every_steps of at most \d+"):
        planned(recipe.load("pretrain_fiber"), gpus=1, time_limit_hours=0.5)
    with pytest.raises(RecipeError, match=r"leaves 0 steps .* a longer --time-limit"):
        planned(recipe.load("pretrain_fiber"), time_limit_hours=0.05)


def test_hours_are_work_over_peak_and_mfu():
    """The specification's table: SVL's 75 M pairs take 8.2 H200-hours at 30%."""
    found = planned(recipe.load("pretrain_svl"), mfu=0.3)
    assert found.speed.gpu_hours == pytest.approx(8.2, rel=0.03)
    half = planned(recipe.load("pretrain_svl"), mfu=0.15)
    assert half.speed.gpu_hours == pytest.approx(2 * found.speed.gpu_hours)


def test_the_papers_hours_stand_plain_and_adjusted_by_the_peaks():
    """The specification: SVL at 30% of an H200 takes 57 times fewer hours, 7.2 times by the peaks."""
    assert PAPERS["svl"].ratio(75e6, 8.2) == pytest.approx(57, rel=0.01)
    assert PAPERS["svl"].peak_adjusted(75e6, 8.2, H200) == pytest.approx(7.2, rel=0.01)
    assert planned(recipe.load("pretrain_svl")).paper is PAPERS["svl"]
    assert planned(recipe.load("pretrain_fiber")).paper is None
    assert planned(recipe.load("tiny_svl"), gpus=2).paper is None


def test_a_slow_network_sets_the_pace():
    shown = recipe.load("pretrain_fiber")
    fast, slow = (planned(shown, 8, network_gbit=gbit) for gbit in (3200.0, 10.0))
    assert slow.speed.bound_by_network and not fast.speed.bound_by_network
    assert slow.speed.step_seconds == slow.stage.traffic_seconds > fast.speed.step_seconds


def test_a_card_on_which_nothing_fits_is_refused():
    toy = replace(H200, name="toy", memory=1e9)
    with pytest.raises(RecipeError, match=r"fits on a toy of 1 GB: the least needs \d"):
        planned(recipe.load("pretrain_fiber"), device=toy)


def test_data_needs_count_groups_and_what_the_queue_fetches():
    one, four, queue = (
        planned(recipe.load("pretrain_fiber", overrides), network_gbit=1e4)
        for overrides in ([], ["data.captions_per_image=4"], ["objectives.itm.negatives=queue"])
    )
    assert one.data.images_per_second == pytest.approx(one.speed.pairs_per_second / 8)
    assert four.data.images_per_second == pytest.approx(four.speed.pairs_per_second / 32)
    assert queue.data.images_per_second == pytest.approx(2 * queue.speed.pairs_per_second / 8)
    assert one.data.megabytes_per_second is None


def test_a_measured_mfu_is_that_of_the_same_system():
    shown = recipe.load("bench_fiber")
    tables = shown.model_dump(mode="json")
    figure = {"name": "MFU of the data sheet's peak, 40 tokens", "unit": "%", "median": 31.5}
    result = {"recipe": tables, "figures": [figure], "hardware": {"device": "NVIDIA H200"}}
    share, source = measured({"variants": {"bench_fiber": result}}, recipe.load("pretrain_fiber"), "f.json")
    assert share == 0.315 and "NVIDIA H200" in source
    with pytest.raises(RecipeError, match=r"f\.json has no MFU of svl"):
        measured(result, recipe.load("pretrain_svl"), "f.json")


def test_the_plan_is_json_that_holds_the_recipe():
    shown = recipe.load("pretrain_svl")
    tables = plan.to_json(planned(shown))
    assert recipe.from_json(tables["recipe"], "plan") == shown
    stage = tables["stages"][1]
    parts = [value for key, value in stage["memory"].items() if key != "total"]
    assert stage["memory"]["total"] == pytest.approx(sum(parts))


def test_the_fewest_gpus_on_which_a_recipe_fits_are_named():
    found = planned(recipe.load("pretrain_fiber"), gpus=2)
    assert not found.stage.fits and found.least_world == 4
    assert planned(recipe.load("pretrain_fiber"), gpus=4).stage.fits


def test_region_features_need_bandwidth_and_no_decoding():
    """The specification: 100 regions at 30 to 40% of an H200 are about 1.7 GB/s or more of features a GPU."""
    shown = recipe.load("pretrain_semvlp")
    low, high = (planned(shown, gpus=4, mfu=share).data for share in (0.3, 0.4))
    assert 1700 < low.megabytes_per_second < high.megabytes_per_second < 2500
    assert low.cores == 0
    assert low.megabytes_per_second / low.images_per_second == pytest.approx(0.41, rel=0.01)


def test_captions_that_share_a_cnn_need_fewer_images():
    one, four = (planned(recipe.load(f"pretrain_pixelbert{name}")).data for name in ("", "_grouped"))
    assert four.images_per_second == pytest.approx(one.images_per_second * 485 / 168.6 / 4, rel=0.01)


def test_a_price_is_the_plans_hours_and_the_papers_run_of_that_model():
    shown = recipe.load("pretrain_svl")
    found = price(shown, H200, 0.3)
    assert found.gpu_hours == pytest.approx(planned(shown, mfu=0.3).speed.gpu_hours)
    assert found.paper is PAPERS["svl"] and price(recipe.load("tiny_svl"), H200, 0.3).paper is None


@pytest.mark.parametrize(
    ("name", "pairs", "hours", "stated"),
    [
        ("pretrain_pixelbert", 223.7e6, 101, "about 4,000 V100-h (estimate)"),
        ("pretrain_pixelbert_grouped", 223.7e6, 36, "about 4,000 V100-h (estimate)"),
        ("pretrain_semvlp", 527e6, 35, "not stated (4 V100)"),
    ],
)
def test_runs_cost_what_the_specification_projects(name, pairs, hours, stated):
    """SemVLP 6% less: its table counts the heads of MLM and MOP at all positions."""
    found = price(recipe.load(name), H200, 0.3)
    assert found.pairs == pytest.approx(pairs, rel=0.001)
    assert found.gpu_hours == pytest.approx(hours, rel=0.06)
    assert found.paper is not None and found.paper.stated() == stated
    assert planned(recipe.load(name), gpus=4).paper is None  # no stated hours to divide by
