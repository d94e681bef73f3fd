import pytest

from dsvlp.data.fit import check_annotations, choose_tokenizer, facts
from dsvlp.data.opened import open_data
from dsvlp.errors import DataError
from tests.data.pictures_of_noise import TABLE, make_dataset, make_recipe, make_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    return make_dataset(folder, "with", [1] * 4, maps=True), make_dataset(folder, "without", [1] * 4)


def test_missing_annotations_name_the_file_and_the_objective(pair):
    recipe = make_recipe("objectives.segl.weight=1.0")
    check_annotations(recipe, pair[:1])
    with pytest.raises(DataError, match=r"without.beton has no segmentation, which objectives.segl reads"):
        check_annotations(recipe, pair)
    check_annotations(make_recipe(), pair)


def test_sources_must_share_their_label_table(pair, tmp_path, monkeypatch):
    other = make_dataset(tmp_path, "other", [1] * 4, maps=True)
    narrow = type(TABLE)("narrow", TABLE.ids, ("a", "b", "c"), TABLE.ignore)
    monkeypatch.setattr(type(other), "segmentation", property(lambda d: narrow if d is other else TABLE))
    with pytest.raises(DataError, match=r"other.beton has the segmentation label table 'narrow'"):
        check_annotations(make_recipe("objectives.segl.weight=1.0"), [pair[0], other])


def test_the_tokenizer_is_the_one_beside_the_data_and_must_fit(pair):
    with pytest.raises(DataError, match=r"has no tokenizer beside it and data.tokenizer is not set"):
        choose_tokenizer(make_recipe(), pair)
    tokenizer = make_tokenizer(pair)
    tokenizer.save(pair[0].path / "tokenizer")
    found = choose_tokenizer(make_recipe(), pair)
    assert found.fingerprint == tokenizer.fingerprint
    assert facts(pair, found).vocabulary == tokenizer.vocabulary
    with pytest.raises(DataError, match=r"model.text.vocabulary="):
        choose_tokenizer(make_recipe("model.text.vocabulary=20"), pair)


def test_the_synthetic_world_stands_in_where_no_data_are_named(tmp_path):
    settings = ("data.synthetic.images=12", "data.synthetic.image_size=48", "objectives.segl.weight=1.0")
    with open_data(make_recipe(*settings), tmp_path) as data:
        batch = next(data.train)
        assert batch.images.shape == (2, 3, 32, 32) and batch.segmentation is not None
        assert data.has_validation and data.facts.segmentation == data.datasets[0].segmentation
        with data.validation() as passed:
            assert len(passed) > 0 and next(passed).weight.all()
