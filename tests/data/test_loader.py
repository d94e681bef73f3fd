import logging
import threading
from dataclasses import fields

import numpy as np
import pytest
import torch

from dsvlp.data.loader import Loader
from dsvlp.errors import DataError, RunError
from dsvlp.types import Batch
from tests.data.pictures_of_noise import damage, make_dataset, make_loader, make_tokenizer

CAPTIONS = [1, 2, 3, 4, 5] * 3  # 45 samples of 15 images
THREADS = ("dsvlp-decode", "training data", "evaluation data")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    dataset = make_dataset(tmp_path_factory.mktemp("loader"), "noise", CAPTIONS, rows_per_shard=4, maps=True)
    return dataset, make_tokenizer([dataset])


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    assert not left


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {f.name: getattr(batch, f.name) for f in fields(batch) if getattr(batch, f.name) is not None}


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert tensors(one).keys() == tensors(other).keys()
        for name, tensor in tensors(one).items():
            assert torch.equal(tensor, tensors(other)[name]), name


@pytest.mark.parametrize("captions", [1, 2])
def test_the_world_and_the_accumulation_change_nothing(noise, captions):
    dataset, tokenizer = noise
    both = (f"data.captions_per_image={captions}", "objectives.segl.weight=1.0")
    alone = take(make_loader([dataset], tokenizer, *both), 12)  # two steps
    for world in (2, 3):
        per_rank = [
            take(make_loader([dataset], tokenizer, *both, rank=rank, world=world), 12 // world)
            for rank in range(world)
        ]
        dealt = [batch for together in zip(*per_rank, strict=True) for batch in together]
        assert_equal(alone, dealt)
    whole = take(make_loader([dataset], tokenizer, *both, "batch.micro_pairs=12"), 2)
    for name in ("images", "samples", "matched", "image_keys", "pair_keys", "weight", "rows", "segmentation"):
        pieces = torch.cat([getattr(batch, name) for batch in alone])
        assert torch.equal(pieces, torch.cat([getattr(batch, name) for batch in whole])), name


def test_a_resume_in_mid_epoch_with_other_workers_goes_on_bit_for_bit(noise):
    dataset, tokenizer = noise
    through = take(make_loader([dataset], tokenizer), 6 * 8)
    with make_loader([dataset], tokenizer) as first:
        for _ in range(6 * 2):
            next(first)
        state = first.state_dict()
    assert state["steps"] == 2
    for settings in (("data.workers=3", "data.prefetch=5"), ("data.workers=0",)):
        again = make_loader([dataset], tokenizer, *settings)
        again.load_state_dict(state)
        assert_equal(through[12:], take(again, 36))
        assert again.state_dict()["steps"] == 8


def test_an_epoch_covers_every_sample_once(noise):
    dataset, tokenizer = noise
    batches = take(make_loader([dataset], tokenizer, "batch.micro_pairs=3", "batch.global_pairs=9"), 45)
    samples = torch.cat([batch.samples for batch in batches]).reshape(3, 45)
    assert (samples.sort(1).values == torch.arange(45)).all()
    assert (samples[0] != samples[1]).any()
    first_epoch, second_epoch = (
        torch.cat([b.pair_keys for b in part]) for part in (batches[:15], batches[15:30])
    )
    assert not set(first_epoch.tolist()) & set(second_epoch.tolist())


def test_texts_and_partners_are_what_the_samples_say(noise):
    dataset, tokenizer = noise
    for batch in take(make_loader([dataset], tokenizer), 12):
        own = dataset.texts(dataset.samples["text"][batch.samples])
        ids, mask, special = tokenizer.encode(own, batch.text_ids.shape[1])
        assert torch.equal(batch.text_ids[:2], torch.from_numpy(ids))
        assert torch.equal(batch.text_mask[:2], torch.from_numpy(mask))
        assert torch.equal(batch.special_mask[:2], torch.from_numpy(special))
        assert batch.pairs.tolist() == [[0, 0], [1, 1]] and batch.partner.tolist() == [2, 3]
        for pair in range(2):
            words = tokenizer.tokens(batch.text_ids[batch.partner[pair]])
            mine = tokenizer.tokens(batch.text_ids[pair])
            assert words[:6] != mine[:6]  # "noise picture N caption": another N
        assert (dataset.samples["rows"][batch.samples, 0] == batch.rows.numpy()).all()


def test_half_of_every_global_batch_is_mismatched(noise):
    dataset, tokenizer = noise
    matched = torch.cat([batch.matched for batch in take(make_loader([dataset], tokenizer), 24)])
    assert (matched.reshape(4, 12).sum(1) == 6).all()


def test_pairs_that_find_no_other_image_are_counted_and_told_once(tmp_path, caplog):
    lonely = make_dataset(tmp_path, "lonely", [6])  # one image: no caption can be another's
    loader = make_loader([lonely], make_tokenizer([lonely]), "data.prefetch=1")
    batches = take(loader, 12)  # two steps of 12 pairs
    assert all(batch.matched.all() for batch in batches)
    assert loader.partnerless >= 12 and loader.partnerless % 6 == 0  # half of 12 a step; made ahead counts
    told = [record.getMessage() for record in caplog.records if "no other image" in record.getMessage()]
    assert len(told) == 1 and "step 0: 6 of 12 pairs" in told[0]


def test_without_itm_no_partner_is_read(noise):
    dataset, tokenizer = noise
    (batch,) = take(make_loader([dataset], tokenizer, "objectives.itm=false"), 1)
    assert len(batch.text_ids) == 2 and batch.matched.all() and batch.partner.tolist() == [0, 1]


def test_captions_of_one_image_share_it(noise):
    dataset, tokenizer = noise
    settings = ("data.captions_per_image=3", "batch.micro_pairs=6")
    for batch in take(make_loader([dataset], tokenizer, *settings), 4):
        assert len(batch.images) == len(batch.image_keys) == 2
        assert batch.pairs[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
        owners = dataset.samples["rows"][batch.samples, 0]
        assert (owners == batch.rows[batch.pairs[:, 0]].numpy()).all()
        counted = batch.samples[batch.weight > 0].tolist()
        assert len(set(counted)) == len(counted)


def test_annotations_come_only_where_an_objective_reads_them(noise):
    dataset, tokenizer = noise
    (plain,) = take(make_loader([dataset], tokenizer), 1)
    assert plain.segmentation is None and plain.boxes_cxcywh is None
    annotated = ("objectives.segl.weight=1.0", "model.visual_queries=4", "objectives.spl.weight=1.0")
    for batch in take(make_loader([dataset], tokenizer, *annotated), 6):
        has_map = batch.rows % 2 == 0
        assert ((batch.segmentation >= 0).flatten(1).any(1) == has_map).all()
        assert batch.segmentation.max() <= 2
        assert ((batch.box_labels >= 0).any(1) == has_map).all()
        assert batch.boxes_cxcywh.min() >= 0 and batch.boxes_cxcywh.max() <= 1


def test_a_label_that_no_table_knows_names_file_and_value(noise):
    dataset, tokenizer = noise
    table = dataset.segmentation
    narrow = type(table)("narrow", table.ids[:2], table.names[:2], table.ignore)
    from dataclasses import replace

    other = type(dataset)(dataset.path, replace(dataset.manifest, segmentation=narrow))
    loader = make_loader([other], tokenizer, "objectives.segl.weight=1.0")
    with pytest.raises(DataError, match=r"noise.beton/\d+.jpg has the segmentation label 9.*'narrow'"):
        take(loader, 6)


def test_an_evaluation_counts_every_sample_once_on_any_world(noise):
    dataset, tokenizer = noise
    seen = []
    for world in (1, 2, 3):
        loaders = [
            make_loader([dataset], tokenizer, rank=rank, world=world, split="evaluate")
            for rank in range(world)
        ]
        passes = []
        for loader in loaders:
            with loader:
                passes.append(list(loader))
                assert len(passes[-1]) == len(loader)
        assert len({len(batches) for batches in passes}) == 1
        batches = [batch for together in zip(*passes, strict=True) for batch in together]
        counted = torch.cat([batch.samples[batch.weight > 0] for batch in batches])
        assert sorted(counted.tolist()) == list(range(45))
        seen.append(torch.cat([batch.pair_keys[batch.weight > 0] for batch in batches]))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_evaluation_does_not_augment_and_may_be_cut_short(noise):
    dataset, tokenizer = noise
    first = list(make_loader([dataset], tokenizer, split="evaluate", pairs=5))
    second = list(make_loader([dataset], tokenizer, "seed=9", split="evaluate", pairs=5))
    assert_equal(first, second)
    assert sum(batch.weight.sum().item() for batch in first) == 5
    by_row: dict[int, torch.Tensor] = {}
    for batch in make_loader([dataset], tokenizer, split="evaluate"):
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            assert torch.equal(by_row.setdefault(row, image.clone()), image)


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_bad_images_are_named_and_replaced_alike_on_any_world(tmp_path, caplog, how):
    dataset = make_dataset(tmp_path, "bad", [2] * 12)
    tokenizer = make_tokenizer([dataset])
    for row in (3, 7):
        damage(dataset, row, b"\xff\xd8\xff\xd9" if how == "truncated" else b"garbage" * 3)
    allowed = "data.max_bad_share=0.9"
    with caplog.at_level(logging.WARNING):
        loader = make_loader([dataset], tokenizer, allowed)
        alone = take(loader, 12)
    assert "bad image bad.beton/0003.jpg" in caplog.text
    assert loader.bad.total >= 4 and loader.bad.seen >= 24  # made ahead, and bad substitutes, count too
    rows = torch.cat([batch.rows for batch in alone])
    assert not {3, 7} & set(rows.tolist())
    for batch in alone:
        assert batch.images.isfinite().all()
        assert (dataset.samples["rows"][batch.samples, 0] == batch.rows.numpy()).all()
    per_rank = [take(make_loader([dataset], tokenizer, allowed, rank=r, world=2), 6) for r in range(2)]
    assert_equal(alone, [batch for together in zip(*per_rank, strict=True) for batch in together])


def test_bad_images_weigh_nothing_in_evaluation(tmp_path):
    dataset = make_dataset(tmp_path, "bad", [1] * 12)
    damage(dataset, 3, b"garbage")
    with make_loader(
        [dataset], make_tokenizer([dataset]), "data.max_bad_share=0.5", split="evaluate"
    ) as loader:
        counted = [row for batch in loader for row in batch.rows[batch.weight > 0].tolist()]
    assert sorted(counted) == [row for row in range(12) if row != 3]


def test_too_many_bad_images_stop_the_run(tmp_path):
    dataset = make_dataset(tmp_path, "bad", [1] * 12)
    damage(dataset, 3, b"garbage")
    loader = make_loader([dataset], make_tokenizer([dataset]), "data.max_bad_share=0.01")
    with pytest.raises(DataError, match=r"1 images cannot be read, the last is bad.beton/0003.jpg"):
        take(loader, 12)


def test_sources_are_mixed_by_weight_each_with_its_own_epochs(tmp_path):
    large = make_dataset(tmp_path, "large", [1] * 20)
    small = make_dataset(tmp_path, "small", [1] * 4, seed=100)
    sources = f'data.train=[{{path="{large.path}", weight=3.0}}, {{path="{small.path}", weight=1.0}}]'
    batches = take(make_loader([large, small], make_tokenizer([large, small]), sources), 24)
    samples = torch.cat([batch.samples for batch in batches])
    assert (samples.reshape(-1, 4) >= 20).sum(1).tolist() == [1] * 12
    ours = samples[samples >= 20].reshape(3, 4)
    assert (ours.sort(1).values == torch.arange(20, 24)).all()
    first_large_epoch = samples[samples < 20][:20]
    assert sorted(first_large_epoch.tolist()) == list(range(20))


def test_a_state_is_refused_with_the_names_of_what_differs(noise, tmp_path):
    dataset, tokenizer = noise
    loader = make_loader([dataset], tokenizer)
    state = loader.state_dict()
    other = make_dataset(tmp_path, "other", [1] * 12)
    with pytest.raises(DataError, match=r"sources: .*tokenizer: "):
        make_loader([other], make_tokenizer([other])).load_state_dict(state)
    with pytest.raises(DataError, match="seed: 0 there, 5 here"):
        make_loader([dataset], tokenizer, "seed=5").load_state_dict(state)


def test_another_decoder_goes_on_with_the_same_samples_and_a_warning(noise, caplog):
    dataset, tokenizer = noise
    through = take(make_loader([dataset], tokenizer), 12)
    with make_loader([dataset], tokenizer) as loader:
        for _ in range(6):
            next(loader)
        state = loader.state_dict()
    again = make_loader([dataset], tokenizer)
    again.load_state_dict({**state, "decoder": "another 1.0"})
    assert "decoded by another 1.0" in caplog.text and "not bit for bit" in caplog.text
    assert_equal(through[6:], take(again, 6))
    caplog.clear()
    again.load_state_dict(state)
    assert not caplog.text


def test_the_state_is_refused_within_a_step(noise):
    dataset, tokenizer = noise
    with make_loader([dataset], tokenizer) as loader:
        next(loader)
        with pytest.raises(RunError, match=r"after 1 of 6 micro-batches"):
            loader.state_dict()


def test_closing_in_mid_epoch_and_going_on_loses_nothing(noise):
    dataset, tokenizer = noise
    through = take(make_loader([dataset], tokenizer), 12)
    loader = make_loader([dataset], tokenizer)
    first = take(loader, 6)
    assert_equal(through, first + take(loader, 6))
    assert loader.wait_seconds > 0


def test_a_batch_that_is_kept_is_never_overwritten(noise):
    dataset, tokenizer = noise
    with make_loader([dataset], tokenizer) as loader:
        kept = next(loader)
        before = kept.images.clone()
        addresses = {next(loader).images.data_ptr() for _ in range(30)}
        assert torch.equal(kept.images, before)
    assert kept.images.data_ptr() not in addresses
    assert len(addresses) < 12  # memory that nobody holds is used again


def test_a_captions_direction_word_keeps_the_image_unflipped(noise, monkeypatch):
    dataset, tokenizer = noise
    flips = []
    from dsvlp.data import batches

    draw = batches.draw_crops

    def note(keys, heights, widths, may_flip, *framing):
        flips.extend(may_flip.tolist())
        return draw(keys, heights, widths, may_flip, *framing)

    monkeypatch.setattr(batches, "draw_crops", note)
    monkeypatch.setattr(batches, "forbids_flip", lambda text, words: text.endswith("caption 1"))
    made = take(make_loader([dataset], tokenizer, "data.workers=0"), 12)
    texts = dataset.texts(dataset.samples["text"][np.concatenate([batch.samples for batch in made])])
    assert flips[: len(texts)] == [not text.endswith("caption 1") for text in texts]
