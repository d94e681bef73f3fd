import json
import shutil

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

import dsvlp
from dsvlp.cli import export as verb
from dsvlp.engine.exported import MANIFEST, WEIGHTS
from dsvlp.errors import CheckpointError, RunError
from dsvlp.predict import export
from dsvlp.predict.model import open_trained
from tests.predict.conftest import TEXTS


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "out"
    done = CliRunner().invoke(verb.command, [str(run), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


def test_an_export_gives_the_runs_outputs_to_the_bit(run, exported, picture):
    mine, theirs = dsvlp.load(run), dsvlp.load(exported)
    assert theirs.match(picture, TEXTS[0]) == mine.match(picture, TEXTS[0])
    assert theirs.encode_text(TEXTS).tokens.equal(mine.encode_text(TEXTS).tokens)
    assert theirs.trained.recipe == mine.trained.recipe and theirs.trained.step == 7


def test_it_works_far_from_the_run(exported, picture, tmp_path):
    shutil.copytree(exported, tmp_path / "elsewhere")
    assert 0 < dsvlp.load(tmp_path / "elsewhere").match(picture, TEXTS[0]) < 1


def test_a_tied_weight_is_stored_once(run, exported):
    names = load_file(exported / WEIGHTS).keys()
    assert "model.text.embeddings.word_embeddings.weight" in names
    assert "objectives.mlm.decoder.weight" not in names
    trained, _ = open_trained(run)
    assert names == {name for name, _ in trained.system.named_parameters()}


def test_nothing_is_overwritten(run, exported):
    trained, tokenizer = open_trained(run)
    with pytest.raises(RunError, match="exists already"):
        export.write(trained, tokenizer, exported)


def test_an_export_can_be_exported_again(exported, tmp_path):
    done = CliRunner().invoke(verb.command, [str(exported), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (exported / WEIGHTS).read_bytes()


def flip_a_bit(folder):
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_format(folder):
    told = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(told | {"format": 99}))


def drop_a_key(folder):
    told = json.loads((folder / MANIFEST).read_text())
    del told["facts"]
    (folder / MANIFEST).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_bit, "model.safetensors is damaged"),
        (other_format, "format 99"),
        (drop_a_key, "is damaged: KeyError"),
        (lambda folder: (folder / WEIGHTS).unlink(), "is damaged: FileNotFoundError"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "is damaged"),
    ],
)
def test_damage_is_named(exported, tmp_path, damage, says):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=says):
        dsvlp.load(folder)
