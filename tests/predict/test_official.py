"""Files of the official code: nothing in them runs, and whatever is wrong with them is named."""

import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from dsvlp.errors import CheckpointError, RunError
from dsvlp.predict import official

STATE = {"temp": torch.tensor(0.07), "vit_model.norm.weight": torch.arange(3.0)}


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_what_is_written_is_read_back(tmp_path, ending):
    path = tmp_path / f"new/a.{ending}"
    official.write(STATE, path)
    assert same(official.read(path))
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_that_nobody_wrote_so_are_an_error_of_ours(tmp_path):
    """A flipped byte in the pickle of a zip without checksums of torch's own; none may crash or run."""
    torch.save({"state_dict": STATE}, tmp_path / "a.ckpt")
    whole, refused = (tmp_path / "a.ckpt").read_bytes(), 0
    start = whole.index(b"state_dict") - 30
    for place in range(start, start + 120):
        (tmp_path / "a.ckpt").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            official.read(tmp_path / "a.ckpt")
        except CheckpointError as error:
            refused += "weights_only" not in str(error)
    assert refused > 20


def test_the_official_loader_finds_its_key(tmp_path):
    official.write(STATE, tmp_path / "a.ckpt")
    assert same(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])


def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path):
    torch.save({"state_dict": STATE, "extra": Hostile(tmp_path / "ran")}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"holds the code .*Path.* does not run"):
        official.read(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


def test_the_classes_that_lightning_files_states_under_are_read_as_empty(tmp_path, monkeypatch):
    """As Lightning 1.3 writes it: callbacks by class, hyper-parameters in a container of its own."""
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks"})
    settings = type("ReadOnlyDict", (dict,), {"__module__": "sacred.config"})
    with monkeypatch.context() as patched:
        for held in (callback, settings):
            module = ModuleType(held.__module__)
            setattr(module, held.__name__, held)
            patched.setitem(sys.modules, held.__module__.split(".")[0], ModuleType("parent"))
            patched.setitem(sys.modules, held.__module__, module)
        states = {"callbacks": {callback: {"best": 1.0}}, "hyper_parameters": settings(lr=1e-5)}
        torch.save({"state_dict": STATE, **states}, tmp_path / "a.ckpt")
    assert "pytorch_lightning" not in sys.modules
    assert same(official.read(tmp_path / "a.ckpt"))


def cut(path: Path) -> None:
    torch.save({"state_dict": STATE}, path)
    path.write_bytes(path.read_bytes()[:-100])


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "no checkpoint")


def cut_safetensors(path: Path) -> None:
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b""), "neither a .ckpt"),
        (lambda path: path.write_text("a page of HTML that the server sent"), "neither a .ckpt"),
        (cut, "neither a .ckpt"),
        (cut_safetensors, "neither a .ckpt"),
        (other_zip, "is damaged"),
        (lambda path: torch.save({"model": STATE}, path), r"no `state_dict`; it holds \['model'\]"),
        (lambda path: torch.save([1, 2], path), "no `state_dict`; it holds list"),
        (lambda path: torch.save({"state_dict": {"temp": 0.07}}, path), "'temp' .*no tensor"),
        (lambda path: path.mkdir(), "there is no file"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, make, says):
    make(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=says):
        official.read(tmp_path / "a.ckpt")


def test_nothing_is_overwritten_and_other_endings_are_refused(tmp_path):
    (tmp_path / "a.ckpt").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        official.write(STATE, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").read_text() == "mine"
    with pytest.raises(RunError, match=r"\.pth"):
        official.write(STATE, tmp_path / "a.pth")
    assert [child.name for child in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def full(state, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(official, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        official.write(STATE, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
