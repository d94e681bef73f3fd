import importlib

import pytest
import torch

from dsvlp.data.decode import CPUDecoder
from dsvlp.data.decoders import open as opening
from dsvlp.data.decoders.open import BACKENDS, open_decoder, states, tried
from dsvlp.errors import MissingDependency, RunError
from tests.data.fake_device import FakeDevice

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_the_cpus_decoder_needs_nothing():
    assert isinstance(open_decoder("cpu", GPU), CPUDecoder)


@pytest.mark.parametrize("name", BACKENDS)
def test_without_a_gpu_each_is_refused_with_the_reason_and_the_way_out(name, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        RunError, match=rf"'{name}' decodes on a GPU: torch .* is built without CUDA"
    ) as refusal:
        open_decoder(name, CPU)
    assert "data.decoder=cpu" in str(refusal.value) and "dsvlp doctor" in str(refusal.value)


def test_a_driver_that_is_too_old_is_named(monkeypatch):
    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040).\nPlease update"
        )

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(
        RunError, match=r"decodes on a GPU: The NVIDIA driver .* too old \(found version 11040\)\. "
    ):
        open_decoder("torchvision", CPU)


@pytest.mark.parametrize("error", [ImportError("No module named 'x'"), OSError("libnvjpeg.so.13: not found")])
def test_a_library_that_does_not_load_is_named_with_what_brings_it(error, monkeypatch):
    def load(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(
        MissingDependency, match=r"does not load: .*pip install 'torchcodec>=0\.16'.*data\.decoder=cpu"
    ):
        open_decoder("torchcodec", GPU)


class Broken(FakeDevice):
    def decode(self, jpegs):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nframe #0")


class Wrong(FakeDevice):
    def decode(self, jpegs):
        return [torch.zeros(3, 16, 16, dtype=torch.uint8)]


@pytest.mark.parametrize(
    ("kind", "reason"), [(Broken, "not compiled with nvJPEG support"), (Wrong, "another grey")]
)
def test_a_backend_that_fails_its_trial_is_refused(kind, reason):
    with pytest.raises(RunError, match=rf"fake 1\.0 cannot decode a JPEG on cpu: .*{reason}"):
        tried(kind())
    assert tried(FakeDevice()).calls == [1]


def test_without_a_gpu_every_state_says_why_and_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(opening, "why_no_gpu", lambda: "no driver")
    assert states() == {
        "cpu": (CPUDecoder.name, ""),
        **{name: ("not usable here: no driver", "") for name in BACKENDS},
    }


def test_beside_a_gpu_what_does_not_load_comes_with_its_remedy(monkeypatch):
    def load(name: str) -> None:
        raise ImportError("libnvjpeg.so.13")

    monkeypatch.setattr(opening, "why_no_gpu", lambda: "")
    monkeypatch.setattr(importlib, "import_module", load)
    found = states()
    for name, (_, remedy) in BACKENDS.items():
        assert "libnvjpeg.so.13" in found[name][0] and found[name][1] == remedy
