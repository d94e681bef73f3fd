import numpy as np
import pytest

from dsvlp.errors import RunError
from dsvlp.tasks import scores


def slow_rank(row: np.ndarray, relevant: np.ndarray) -> int:
    """Counts, for each relevant candidate, those before it: higher, or equal with a lower index."""
    ranks = []
    for i in np.flatnonzero(relevant):
        ranks.append(sum(s > row[i] or (s == row[i] and j < i) for j, s in enumerate(row)))
    return min(ranks)


@pytest.mark.parametrize("levels", [3, 1000])
def test_best_ranks_agree_with_counting_also_where_scores_are_equal(levels):
    rng = np.random.default_rng(levels)
    table = rng.integers(0, levels, (40, 23)).astype(np.float32)
    relevant = rng.random((40, 23)) < 0.2
    relevant[np.arange(40), rng.integers(0, 23, 40)] = True
    expected = [slow_rank(row, mask) for row, mask in zip(table, relevant, strict=True)]
    assert scores.best_ranks(table, relevant).tolist() == expected


def test_a_model_that_scores_everything_alike_gets_chance():
    constant = np.zeros((200, 200), np.float32)
    found = scores.retrieval(constant, np.arange(200))
    assert found["TR@1"].hits == found["IR@1"].hits == 1
    assert found["TR@10"].hits == found["IR@10"].hits == 10


def test_a_perfect_model_finds_everything_with_several_captions_an_image():
    image_of_text = np.array([0, 0, 1, 2, 2, 2])
    table = (np.arange(3)[:, None] == image_of_text[None]).astype(np.float32)
    found = scores.retrieval(table, image_of_text)
    assert (found["TR@1"].hits, found["TR@1"].total) == (3, 3)
    assert (found["IR@1"].hits, found["IR@1"].total) == (6, 6)


def test_text_and_image_retrieval_are_not_mixed_up():
    # Image 0 attracts every text, so text -> image fails for image 1's; image -> text is right for both.
    table = np.array([[9.0, 5.0], [1.0, 4.0]], np.float32)
    found = scores.retrieval(table, np.array([0, 1]))
    assert found["TR@1"].hits == 2
    assert found["IR@1"].hits == 1


def test_scores_that_are_not_numbers_are_refused():
    table = np.zeros((2, 2), np.float32)
    table[1, 0] = np.nan
    with pytest.raises(RunError, match="1 of 4 scores are NaN"):
        scores.best_ranks(table, np.eye(2, dtype=bool))


def test_an_image_without_a_text_is_refused():
    with pytest.raises(RunError, match="query 1 has no relevant candidate"):
        scores.retrieval(np.zeros((2, 2), np.float32), np.array([0, 0]))


def test_reranking_orders_the_first_k_anew_and_leaves_the_rest_behind_them():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, (30, 12)).astype(np.float32)
    second = rng.integers(0, 3, (30, 12)).astype(np.float32)
    for k in (1, 4, 12, 20):
        found = scores.reranked(first, second, k)
        for row in range(30):
            order = sorted(range(12), key=lambda j: (-first[row, j], j))
            top = sorted(order[:k], key=lambda j: (-second[row, j], order.index(j)))
            assert np.argsort(-found[row]).tolist() == top + order[k:]


def test_reranking_reads_no_more_than_the_candidates():
    rng = np.random.default_rng(1)
    first, second = rng.random((9, 20)), rng.random((9, 20)).astype(np.float32)
    read = scores.best_candidates(first, 5)
    assert read.sum(1).tolist() == [5] * 9
    unread = np.where(read, second, -np.inf)
    assert np.array_equal(scores.reranked(first, unread, 5), scores.reranked(first, second, 5))
    with pytest.raises(RunError, match="9 of 54 match scores are not finite"):
        scores.reranked(first, unread, 6)


def test_chance_is_what_random_scores_reach_on_average():
    image_of_text = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4])
    rng = np.random.default_rng(2)
    drawn = [scores.retrieval(rng.random((5, 9)), image_of_text, ks=(1, 4)) for _ in range(3000)]
    for name, share in drawn[0].items():
        assert np.mean([one[name].value for one in drawn]) == pytest.approx(share.chance, abs=0.02), name
    assert scores.retrieval(np.eye(200), np.arange(200))["TR@1"].chance == pytest.approx(1 / 200)
    assert scores.retrieval(np.eye(3), np.arange(3))["TR@10"].chance == 1.0


def test_the_interval_holds_the_true_share_in_about_95_of_100_samples():
    rng = np.random.default_rng(0)
    for true in (0.05, 0.5, 0.9):
        held = 0
        for hits in rng.binomial(200, true, 2000):
            low, high = scores.Share(int(hits), 200).interval
            held += low <= true <= high
        assert 0.92 < held / 2000 < 0.98
    assert scores.Share(0, 10).interval[0] == 0.0
    assert scores.Share(10, 10).interval[1] == pytest.approx(1.0)


def test_first_of_each_keeps_the_first_caption_in_order():
    assert scores.first_of_each(np.array([2, 2, 0, 0, 1])).tolist() == [0, 2, 4]
