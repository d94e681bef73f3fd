import pytest

from dsvlp import recipe
from dsvlp.data import opened
from dsvlp.data.fit import check_annotations, choose_tokenizer, facts
from dsvlp.data.opened import open_data
from dsvlp.errors import DataError, RecipeError
from tests.data.pictures_of_noise import TABLE, make_dataset, make_recipe, make_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    return make_dataset(folder, "with", [1] * 4, maps=True), make_dataset(folder, "without", [1] * 4)


def test_missing_annotations_name_the_file_and_the_objective(pair):
    table = make_recipe("objectives.segl.weight=1.0")
    check_annotations(table, pair[:1])
    with pytest.raises(DataError, match=r"without.beton has no segmentation, which objectives.segl reads"):
        check_annotations(table, pair)
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


def test_a_recipe_that_names_no_data_is_refused_not_trained_on_drawn_scenes(tmp_path):
    with pytest.raises(RecipeError, match=r"data\.train is empty"):
        open_data(recipe.load("pretrain_svl"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_bench_of_a_recipe_that_names_no_data_draws_scenes(tmp_path, monkeypatch):
    asked = []

    def ensure(settings, *_):
        asked.append(settings)
        raise DataError("drawn no further")

    monkeypatch.setattr(opened, "ensure_world", ensure)
    with pytest.raises(DataError, match="drawn no further"):
        open_data(recipe.load("pretrain_svl"), tmp_path, drawn=True)
    assert asked == [recipe.Synthetic()]


def test_the_synthetic_world_stands_in_where_the_recipe_has_its_table(tmp_path):
    settings = ("data.synthetic.images=12", "data.synthetic.image_size=48", "objectives.segl.weight=1.0")
    with open_data(make_recipe(*settings), tmp_path) as data:
        batch = next(data.train)
        assert batch.images.shape == (2, 3, 32, 32) and batch.segmentation is not None
        assert data.has_validation and data.facts.segmentation == data.datasets[0].segmentation
        with data.validation() as passed:
            assert len(passed) > 0 and next(passed).weight.all()
