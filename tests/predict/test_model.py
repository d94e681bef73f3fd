import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import dsvlp
from dsvlp import recipe
from dsvlp.cli import predict as verb
from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.errors import DataError, RunError
from dsvlp.passes import select
from dsvlp.predict import model, overlay
from dsvlp.types import States
from tests.data.features.regions_of_noise import WIDTH, make_features
from tests.data.pictures_of_noise import make_dataset
from tests.predict.conftest import TEXTS, save_run


@pytest.fixture(scope="module")
def predictor(run):
    return dsvlp.load(run)


def test_match_is_a_probability_and_repeats(predictor, picture):
    first = predictor.match(picture, TEXTS[0])
    assert 0 < first < 1
    assert predictor.match(picture, TEXTS[0]) == first


def test_scores_of_a_batch_are_those_of_single_pairs(predictor, picture):
    scores = predictor.score(predictor.encode_image([picture] * 3), predictor.encode_text(TEXTS))
    single = [predictor.match(picture, text) for text in TEXTS]
    torch.testing.assert_close(scores, torch.tensor(single), rtol=1e-4, atol=1e-5)


def test_one_encoded_image_serves_many_texts(predictor, picture):
    image, texts = predictor.encode_image([picture]), predictor.encode_text(TEXTS)
    assert isinstance(image, States)
    repeated = select(image, torch.zeros(len(TEXTS), dtype=torch.int64))
    assert predictor.score(repeated, texts).shape == (3,)


def test_attention_is_a_share_for_every_word(predictor, picture):
    words = predictor.attention(picture, "a red circle")
    assert [word.word for word in words] == ["a", "red", "circle"]
    for word in words:
        assert word.map.shape == (6, 6)  # 96 pixels in cells of 16
        assert word.map.sum() == pytest.approx(1, abs=1e-4)


def test_pieces_of_a_word_are_joined_and_averaged():
    maps = np.stack([np.full((1, 1), value, np.float32) for value in (1.0, 2.0, 4.0)])
    words = model.join_pieces(["tri", "##angle", "star"], maps)
    assert [(word.word, float(word.map[0, 0])) for word in words] == [("triangle", 1.5), ("star", 4.0)]


def test_an_overlay_marks_the_strongest_cell_alone():
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    weights = np.zeros((4, 4), np.float32)
    weights[0, 3] = 0.5
    drawn = np.asarray(overlay.overlay(grey, weights)).astype(int)
    assert np.abs(drawn[:8, 32:] - 128).max() > 40
    assert np.abs(drawn[24:, :16] - 128).max() == 0


def test_a_system_with_queries_matches_but_has_no_places(tmp_path, picture):
    shown = recipe.load("tiny_svl", ["model.visual_queries=5", "objectives.segl=false", "objectives.spl={}"])
    save_run(tmp_path / "run", shown)
    loaded = dsvlp.load(tmp_path / "run")
    assert 0 < loaded.match(picture, TEXTS[0]) < 1
    with pytest.raises(RunError, match="queries"):
        loaded.attention(picture, TEXTS[0])


def test_byte_pairs_begin_a_word_with_the_sign_for_a_space():
    maps = np.stack([np.full((1, 1), value, np.float32) for value in (1.0, 2.0, 4.0, 8.0)])
    words = model.join_pieces(["tri", "angle", "\u0120st", "ar"], maps)
    assert [(word.word, float(word.map[0, 0])) for word in words] == [("triangle", 1.5), ("star", 6.0)]


@pytest.fixture(scope="module")
def fiber(tmp_path_factory):
    """A run of `tiny_fiber`, untrained."""
    folder = tmp_path_factory.mktemp("fiber") / "run"
    save_run(folder, recipe.load("tiny_fiber", ["model.text.vocabulary=90"]))
    return folder


def test_a_fused_backbone_matches_compares_and_shows_where_words_look(fiber, picture):
    loaded = dsvlp.load(fiber)
    images, texts = loaded.encode_image([picture] * 3), loaded.encode_text(TEXTS)
    cosines = loaded.similarity(images, texts)
    assert cosines.shape == (3,) and bool((cosines.abs() <= 1 + 1e-6).all())
    alone = loaded.similarity(select(images, torch.tensor([0])), select(texts, torch.tensor([1])))
    torch.testing.assert_close(alone[0], cosines[1], rtol=1e-4, atol=1e-5)
    assert 0 < float(loaded.score(images, texts)[0]) < 1
    side = 96 // loaded.trained.system.model.stride
    for word in loaded.attention(picture, "a red circle"):
        assert word.map.shape == (side, side)
        assert word.map.sum() == pytest.approx(1, abs=1e-4)


def test_the_verb_prints_both_scores_of_each_text(fiber, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture)
    words = [str(fiber), "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(verb.command, [*words, *(part for text in TEXTS for part in ("--text", text))])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines() if not line.startswith(" ")]
    assert [(line[0], line[2], " ".join(line[4:])) for line in lines] == [("itm", "itc", t) for t in TEXTS]


def test_a_system_without_contrast_cannot_compare(predictor, picture):
    with pytest.raises(RunError, match=r"without objectives\.itc"):
        predictor.similarity(predictor.encode_image([picture]), predictor.encode_text(TEXTS[:1]))


@pytest.mark.parametrize("broken", [b"", b"no image at all", b"\xff\xd8\xff\xe0 cut"])
def test_a_broken_image_is_refused(predictor, broken):
    with pytest.raises(DataError):
        predictor.match(broken, TEXTS[0])


def test_an_absent_and_a_broken_image_are_named(predictor, tmp_path):
    with pytest.raises(DataError, match=r"absent\.jpg cannot be read"):
        predictor.match("absent.jpg", TEXTS[0])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 cut")
    with pytest.raises(DataError, match=r"broken\.jpg: truncated or corrupt"):
        predictor.match(tmp_path / "broken.jpg", TEXTS[0])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="neither a run nor an export"):
        dsvlp.load(tmp_path)


def test_the_verb_prints_scores_and_writes_a_png_a_word(run, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture)
    words = [str(run), "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(verb.command, [*words, "--text", "a red circle"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00-a.png",
        "01-red.png",
        "02-circle.png",
    ]
    name, probability = done.output.split()[:2]
    assert name == "itm" and 0 < float(probability) < 1 and "itc" not in done.output


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A data set with region features, and an untrained SemVLP of their width."""
    folder = tmp_path_factory.mktemp("objects")
    pictures = make_dataset(folder, "noise", [1] * 6)
    dataset = make_features(pictures, folder / "noise.features")
    sizes = ["model.objects=4", f"model.feature_width={WIDTH}", "objectives.mop.classes=3"]
    save_run(folder / "run", recipe.load("tiny_semvlp", [*sizes, "model.text.vocabulary=90"]))
    return dataset, folder / "run"


def test_a_system_of_objects_matches_rows_of_a_data_set(objects, picture):
    dataset, run = objects
    loaded = dsvlp.load(run)
    alone = loaded.score(loaded.encode_rows(dataset, [4]), loaded.encode_text([TEXTS[0]]))
    both = loaded.score(loaded.encode_rows(dataset, [1, 4]), loaded.encode_text([TEXTS[0]] * 2))
    assert 0 < float(alone) < 1 and torch.allclose(alone, both[1:], atol=1e-6) and both[0] != both[1]
    with pytest.raises(RunError, match=r"reads region features, not pictures.*--row"):
        loaded.encode_image([picture])
    with pytest.raises(DataError, match=r"has no row 6\. Expected 0 to 5"):
        loaded.encode_rows(dataset, [0, 6])
    with pytest.raises(DataError, match="has no region features"):
        loaded.encode_rows(Dataset.open(dataset.path), [0])
    with pytest.raises(RunError, match="semvlp has no attention from words to the places"):
        loaded.attention(picture, TEXTS[0])


def test_a_system_of_pictures_matches_rows_as_it_matches_their_files(objects, predictor):
    dataset, _ = objects
    (stored,) = check.rows(dataset, np.array([3]))
    row, file = predictor.encode_rows(dataset, [3]), predictor.encode_image([stored.jpeg])
    assert torch.equal(row.tokens, file.tokens)


def test_the_verb_takes_a_row_in_place_of_a_file(objects, tmp_path):
    dataset, run = objects
    features = str(dataset.path.with_suffix(".features"))
    words = [
        str(run),
        "--data",
        str(dataset.path),
        "--features",
        features,
        "--row",
        "2",
        "--text",
        "a circle",
    ]
    done = CliRunner().invoke(verb.command, words)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("itm ") and "png" not in done.output
    assert CliRunner().invoke(verb.command, [*words, "--image", "a.png"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "a.png", "--row", "2"], "--row goes with --data, and does nothing with --image"),
        (
            ["--image", "a.png", "--features", "x"],
            "--features goes with --data, and does nothing with --image",
        ),
        (["--data", "x.beton", "--out", "x"], "--out goes with --image, and does nothing with --data"),
        (["--data", "x.beton", "--features", "x"], "--features goes with a system of objects"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(run, words, said):
    done = CliRunner().invoke(verb.command, [str(run), *words, "--text", "a circle"])
    assert done.exit_code == 2 and said in done.output


def test_pictures_of_attention_are_refused_where_words_look_at_no_place(objects):
    words = [str(objects[1]), "--image", "a.png", "--out", "x", "--text", "a circle"]
    done = CliRunner().invoke(verb.command, words)
    assert done.exit_code == 2 and "--out goes with a system whose words look at places" in done.output
