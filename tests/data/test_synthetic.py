import hashlib
import io
import json
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvlp.data.dataset import Dataset
from dsvlp.data.synthetic import World, colour_words, ensure_world, read_world, relation_pairs, write_world
from dsvlp.data.synthetic.draw import draw
from dsvlp.data.synthetic.language import captions
from dsvlp.data.synthetic.questions import ANSWERS, questions, statement
from dsvlp.data.synthetic.vocabulary import WORDS, write_vocabulary
from dsvlp.data.synthetic.world import BOX_LABELS, CLASSES, COLOURS, SHAPES, held_out, relations
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError
from dsvlp.recipe import Synthetic
from tests.data.synthetic_checker import answer_of, caption_true, seen, statement_true

WORLDS = [
    World(seed, split, image_size=96, max_shapes=shapes)
    for seed, shapes in ((0, 1), (1, 2), (2, 4))
    for split in ("train", "heldout")
]
named = pytest.mark.parametrize("world", WORLDS, ids=lambda w: f"{w.split}-{w.max_shapes}")


def shown(world: World, index: int):
    """What the checker sees of a picture: boxes and class names."""
    scene = world.scene(index)
    names = [BOX_LABELS.names[shape.label] for shape in scene.shapes]
    return seen(draw(world, scene).boxes_xyxy, names, world.image_size)


def combinations(world: World, scenes: int) -> set[tuple[int, str, int]]:
    """Every (class, relation, class) that holds in the scenes, said both ways."""
    found = set()
    for index in range(scenes):
        shapes = world.scene(index).shapes
        found |= {(a.label, r, b.label) for a in shapes for b in shapes if a != b for r in relations(a, b)}
    return found


@named
def test_captions_are_true_of_the_picture_and_differ(world):
    for index in range(150):
        texts = [text.text for text in captions(world, world.scene(index))]
        assert len(set(texts)) == 5
        shapes = shown(world, index)
        assert all(caption_true(text, shapes) for text in texts), (texts, shapes)


def test_the_checker_refuses_captions_of_other_pictures():
    world = World(max_shapes=2, split="heldout")
    texts = [captions(world, world.scene(index)) for index in range(40)]
    pictures = [shown(world, index) for index in range(40)]
    wrong = [
        text.text
        for index in range(40)
        for other in range(40)
        if other != index
        for text in texts[other]
        if caption_true(text.text, pictures[index])
    ]
    assert not wrong


@named
def test_phrases_name_their_shape(world):
    for index in range(100):
        scene = world.scene(index)
        for text in captions(world, scene):
            assert text.phrases
            for phrase in text.phrases:
                words = text.text[phrase.start : phrase.end].split()
                assert words[0] in ("a", "an")
                assert " ".join(words[-2:]) == BOX_LABELS.names[scene.shapes[phrase.shape].label]


@named
def test_questions_have_the_answer_that_the_picture_gives(world):
    answers = Counter()
    for index in range(150):
        shapes = shown(world, index)
        for question in questions(world, world.scene(index)):
            assert question.answer == answer_of(question.text, shapes), question
            assert question.answer in ANSWERS
            answers[question.answer] += 1
    assert 0.38 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.62


@named
def test_half_of_the_statements_are_true_and_none_lies_about_it(world):
    truths = []
    for index in range(0, 400, 2):
        made = statement(world, world.scene(index), world.scene(index + 1))
        if index < 200:
            assert made.true == statement_true(made.text, shown(world, index), shown(world, index + 1)), made
        truths.append(made.true)
    assert sum(truths) == 100


def test_the_kind_of_a_statement_does_not_tell_its_truth():
    world = World(max_shapes=2)
    kinds = {True: Counter(), False: Counter()}
    for index in range(0, 2000, 2):
        made = statement(world, world.scene(index), world.scene(index + 1))
        kinds[made.true][made.text.split()[0]] += 1
    for word in kinds[True]:
        share = kinds[True][word] / (kinds[True][word] + kinds[False][word])
        assert 0.35 < share < 0.65, (word, share)


@pytest.mark.parametrize("shapes", [2, 3, 4])
def test_no_held_out_combination_occurs_in_training_whatever_the_seed(shapes):
    training = combinations(World(3, "train", max_shapes=shapes), 2500)
    unseen = combinations(World(4, "heldout", max_shapes=shapes), 400)
    assert not training & unseen
    assert not any(held_out(*combination) for combination in training)
    assert all(held_out(*combination) for combination in unseen)
    parts = [Counter((a, r) for a, r, _ in training), Counter((r, b) for _, r, b in training)]
    for a, relation, b in unseen:
        assert parts[0][a, relation] and parts[1][relation, b]


def test_every_coloured_shape_occurs_in_training_and_every_held_out_scene_has_a_relation():
    world = World(0, "train", max_shapes=2)
    labels = {shape.label for index in range(1000) for shape in world.scene(index).shapes}
    assert labels == set(range(len(CLASSES)))
    unseen = World(0, "heldout", max_shapes=2)
    assert all(len(unseen.scene(index).shapes) == 2 for index in range(200))


def test_single_held_out_shapes_are_combinations_of_size_and_place_that_training_lacks():
    def singles(split):
        scenes = [World(0, split, max_shapes=1).scene(index).shapes[0] for index in range(900)]
        return {(shape.label, shape.size, shape.cell) for shape in scenes}

    assert not singles("train") & singles("heldout")
    assert {label for label, _, _ in singles("train")} == set(range(len(CLASSES)))


@pytest.mark.parametrize("shapes", [1, 2, 4])
def test_200_held_out_scenes_share_no_caption(shapes):
    world = World(5, "heldout", max_shapes=shapes)
    texts = [text.text for index in range(200) for text in captions(world, world.scene(index))]
    assert len(set(texts)) == len(texts) == 1000


@pytest.mark.parametrize("image_size", [96, 384])
def test_maps_and_boxes_agree_and_colours_are_those_named(image_size):
    world = World(1, "train", image_size, max_shapes=4)
    for index in range(30):
        scene = world.scene(index)
        picture = draw(world, scene)
        covered = np.zeros_like(picture.labels, dtype=bool)
        for shape, box in zip(scene.shapes, picture.boxes_xyxy, strict=True):
            mask = picture.labels == shape.label + 1
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            mean = picture.pixels[mask].mean(0)
            nearest = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
            assert nearest == shape.colour
            covered |= mask
        assert not picture.labels[~covered].any()


def test_stored_jpegs_keep_the_picture():
    world = World()
    picture = draw(world, world.scene(0))
    image = Image.open(io.BytesIO(picture.jpeg()))
    assert (image.mode, image.size, image.layer[0][1:3]) == ("RGB", (96, 96), (1, 1))  # no subsampling
    assert np.abs(np.asarray(image).astype(int) - picture.pixels).mean() < 3
    assert (np.asarray(Image.open(io.BytesIO(picture.png()))) == picture.labels).all()


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_bytes_depend_on_seed_and_index_alone(tmp_path):
    few = hashes(write_world(tmp_path / "few", World(7), 8))
    again = hashes(write_world(tmp_path / "again", World(7), 8))
    many = hashes(write_world(tmp_path / "many", World(7), 13))
    other = hashes(write_world(tmp_path / "other", World(8), 8))
    assert few == again
    pictures = {name for name in few if name.startswith(("images/", "maps/"))}
    assert len(pictures) == 16
    assert all(many[name] == few[name] for name in pictures)
    lines = [(tmp_path / name / "annotations.jsonl").read_text().splitlines() for name in ("few", "many")]
    assert lines[1][:8] == lines[0]
    assert not {few[name] for name in pictures if "images" in name} & set(other.values())


def test_region_features_tell_class_and_size(tmp_path):
    parts = []
    for split in ("train", "heldout"):
        folder = write_world(tmp_path / split, World(0, split, max_shapes=3), 80) / "features"
        arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
        assert arrays["features"].dtype == np.float16 and arrays["features"].shape[1] == 64
        assert len(arrays["boxes"]) == len(arrays["labels"]) == len(arrays["confidence"])
        assert arrays["offsets"].tolist()[-1] == len(arrays["labels"]) and len(arrays["offsets"]) == 81
        shapes = [
            (shape["label"], shape["size"])
            for line in (folder.parent / "annotations.jsonl").read_text().splitlines()
            for shape in json.loads(line)["shapes"]
        ]
        assert [label for label, _ in shapes] == arrays["labels"].tolist()
        parts.append((arrays["features"].astype(np.float32), shapes))
    (train, train_shapes), (unseen, unseen_shapes) = parts
    nearest = ((unseen[:, None] - train[None]) ** 2).sum(-1).argmin(1)
    known = [
        (shape, train_shapes[k])
        for shape, k in zip(unseen_shapes, nearest, strict=True)
        if shape in train_shapes
    ]
    assert len(known) > 50 and all(shape == neighbour for shape, neighbour in known)


def test_reader_yields_what_was_written(tmp_path):
    folder = write_world(tmp_path / "world", World(max_shapes=3), 9)
    reader = read_world(folder, ("caption", "question", "statement"))
    samples = list(reader.samples())
    tasks = Counter(sample.task for sample in samples)
    assert tasks["caption"] == 45 and tasks["statement"] == 4 and tasks["question"] >= 3 * 9
    assert reader.images == len({sample.images[0].id for sample in samples}) == 9
    by_image: dict[str, list[str]] = {}
    for sample in samples:
        assert all(image.path.is_file() and image.map_path.is_file() for image in sample.images)
        if sample.task == "caption":
            by_image.setdefault(sample.images[0].id, []).append(sample.text)
        assert (sample.label in (0, 1)) == (sample.task == "statement") == (len(sample.images) == 2)
        assert bool(sample.answers) == (sample.task == "question")
    for sample in samples:
        image = sample.images[0]
        for (ordinal, start, end), label in zip(image.box_phrases, image.box_labels, strict=True):
            if ordinal >= 0:
                assert by_image[image.id][ordinal][start:end].endswith(reader.tables.boxes.names[label])
    assert [s.task for s in read_world(folder).samples()] == ["caption"] * 45


def test_a_folder_that_is_no_world_or_another_one_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"world\.json"):
        read_world(tmp_path)
    with pytest.raises(DataError, match="is no synthetic world"):
        write_world(tmp_path, World(), 2)
    folder = write_world(tmp_path / "world", World(), 4)
    with pytest.raises(DataError, match="seed = 0"):
        write_world(folder, World(seed=1), 4)
    assert write_world(folder, World(), 4) == folder
    with pytest.raises(DataError, match="max_shapes = 5"):
        write_world(tmp_path / "five", World(max_shapes=5), 4)
    with pytest.raises(DataError, match="'story'"):
        read_world(folder, ("story",))
    lines = (folder / "annotations.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "shapes": 3})
    (folder / "annotations.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 3.*shapes"):
        list(read_world(folder).samples())


def test_an_interrupted_writing_leaves_no_world(tmp_path):
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", World(), 5, stop)
    assert not (tmp_path / "world").exists()
    assert len(hashes(write_world(tmp_path / "world", World(), 5) / "images")) == 5


def test_relation_pairs_differ_in_one_word_that_makes_the_second_false():
    pairs = relation_pairs(200, seed=0)
    world = World(0, "heldout")
    words = Counter()
    for pair in pairs:
        shapes = shown(world, pair.image)
        assert caption_true(pair.true, shapes) and not caption_true(pair.false, shapes)
        true, false = pair.true.split(), pair.false.split()
        differing = [(a, b) for a, b in zip(true, false, strict=True) if a != b]
        assert len(differing) == 1
        words[differing[0][0]] += 1
    assert set(words) == {"left", "right", "above", "below"} and min(words.values()) > 25
    assert pairs[3].jpeg == draw(world, world.scene(3)).jpeg()
    with pytest.raises(DataError, match="max_shapes = 1"):
        relation_pairs(1, 0, max_shapes=1)


def test_every_word_is_one_token_and_texts_fit(tmp_path):
    tokenizer = Tokenizer.load(write_vocabulary(tmp_path / "vocab.txt"))
    assert tokenizer.vocabulary <= 128
    texts, longest = [], []
    for world in WORLDS:
        for index in range(0, 200, 2):
            scene = world.scene(index)
            texts += [caption.text for caption in captions(world, scene)]
            longest += [caption.text for caption in captions(world, scene)]
            texts += [question.text for question in questions(world, scene)]
            texts.append(statement(world, scene, world.scene(index + 1)).text)
    words = {word for text in texts for word in text.replace("?", " ?").split()}
    assert words <= set(WORDS)
    ids, _, special = tokenizer.encode(sorted(words), 4)
    assert (ids[:, 1] != tokenizer.unk_id).all() and special[:, 2].all()  # one token each
    assert tokenizer.encode(longest, 64)[1].sum(1).max() <= 20
    assert set(colour_words()) <= words and len(SHAPES) + len(COLOURS) < len(WORDS)


def _ensure(folder: Path) -> None:
    ensure_world(Synthetic(images=40), folder)


def test_processes_that_ask_at_once_get_one_world(tmp_path):
    context = multiprocessing.get_context("fork")  # a spawned one imports torch for longer than it writes
    processes = [context.Process(target=_ensure, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    train, unseen = ensure_world(Synthetic(images=40), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.rglob("*raw*"))
    sizes = {path: Dataset.open(path).images for path in (train, unseen)}
    assert list(sizes.values()) == [40, 200]
    tokenizers = [Tokenizer.load(Dataset.open(path).tokenizer).fingerprint for path in (train, unseen)]
    assert tokenizers[0] == tokenizers[1]
    assert Dataset.open(unseen).image_id(3) == World(0, "heldout").image_id(3)
    other, _ = ensure_world(Synthetic(images=40, seed=1), tmp_path)
    assert other != train
