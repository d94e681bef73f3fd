import itertools

import numpy as np
import pytest

from dsvlp.data.tables import TASKS
from dsvlp.data.units import CountTable, Units
from dsvlp.errors import DataError
from tests.data.pictures_of_noise import make_dataset

CAPTIONS = [1, 3, 5, 0, 2, 4, 7]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    given = [count for count in CAPTIONS if count]
    return make_dataset(tmp_path_factory.mktemp("units"), "units", given, rows_per_shard=2)


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("elements", [1, 63, 64, 65, 5000])
def test_the_table_finds_what_a_list_would(elements, chunk, monkeypatch):
    monkeypatch.setattr("dsvlp.data.units._CHUNK", chunk)
    draw = np.random.default_rng(elements)
    counts = draw.integers(0, 4, elements)
    counts[100:3000] = 0  # whole blocks without a unit
    counts[0] = 3
    owners = np.repeat(np.arange(elements), counts)
    ordinals = np.array([i for count in counts for i in range(count)])
    table = CountTable(elements, counts.__getitem__)
    assert table.total == len(owners)
    for units in (np.arange(len(owners)), draw.integers(0, len(owners), 300), np.arange(0)):
        found, which = table.find(units)
        assert found.tolist() == owners[units].tolist()
        assert which.tolist() == ordinals[units].tolist()
    assert [table.before(e) for e in range(elements + 1)] == [0, *np.cumsum(counts).tolist()]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_groups_hold_every_caption_once_and_repeats_weigh_nothing(dataset, k):
    units = Units(dataset, k)
    captions = units.captions(np.arange(units.count), np.zeros(units.count, np.int64))
    counted = captions.samples[captions.weight > 0]
    assert sorted(counted.tolist()) == list(range(dataset.samples_count))
    owners = dataset.samples["rows"][captions.samples, 0]
    assert (owners == captions.rows[:, None]).all()  # repeats come from the same image too
    assert (captions.weight[:, 0] == 1).all()
    assert sum(units.per_shard) == units.count and len(units.per_shard) == 3


def test_an_image_with_many_captions_deals_others_together_in_another_epoch(dataset):
    units = Units(dataset, 2)
    dealt = []
    for key in range(2):
        captions = units.captions(np.arange(units.count), np.full(units.count, key))
        dealt.append({frozenset(group) for group in captions.samples.tolist()})
    assert dealt[0] != dealt[1]


@pytest.mark.parametrize("questions", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_captions_among_questions_are_dealt_as_if_they_were_alone(dataset, monkeypatch, k, questions):
    if questions:
        monkeypatch.setattr(dataset, "samples", dataset.samples.copy())
        dataset.samples["task"][::3] = TASKS.index("question")
    units = Units(dataset, k)
    captions = units.captions(np.arange(units.count), np.zeros(units.count, np.int64))
    expected = []  # (row, its captions)
    for row, (first, end) in enumerate(itertools.pairwise(dataset.first_sample.tolist())):
        own = [s for s in range(first, end) if dataset.samples["task"][s] == TASKS.index("caption")]
        expected += [(row, set(own))] * -(-len(own) // k)
    assert captions.rows.tolist() == [row for row, _ in expected]
    for dealt, weight, (_, own) in zip(captions.samples, captions.weight, expected, strict=True):
        assert set(dealt.tolist()) <= own
        assert len(set(dealt[weight > 0].tolist())) == weight.sum() >= 1
    assert captions.weight.sum() == len(set().union(*(own for _, own in expected)))


def test_a_data_set_without_captions_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(dataset, "samples", dataset.samples.copy())
    dataset.samples["task"] = 1
    with pytest.raises(DataError, match="has no captions"):
        Units(dataset, 1)
