import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from dsvlp.cli import doctor


def test_a_satisfied_requirement_needs_no_fix():
    assert doctor.examine(Requirement("click>=8")).fix == ""


@pytest.mark.parametrize("text", ["click>=999", "no-such-distribution>=1"])
def test_what_is_missing_or_too_old_comes_with_the_command_that_mends_it(text):
    finding = doctor.examine(Requirement(text))
    assert finding.fix == f"pip install '{text}'" and finding.needed


def test_exit_code_1_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_libraries", lambda: [doctor.Finding("ffcv", "not installed", "pip ...")])
    monkeypatch.setattr(doctor, "_devices", list)
    done = CliRunner().invoke(doctor.command, [])
    assert done.exit_code == 1 and "Missing: ffcv." in done.output


def test_a_note_is_no_failure(monkeypatch):
    monkeypatch.setattr(
        doctor, "_libraries", lambda: [doctor.Finding("GPUs", "hidden", "look", needed=False)]
    )
    monkeypatch.setattr(doctor, "_devices", list)
    monkeypatch.setattr(doctor, "_decoders", list)
    done = CliRunner().invoke(doctor.command, [])
    assert done.exit_code == 0 and "note  GPUs" in done.output


def test_a_broken_torch_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setattr(doctor, "TORCH_PROBE", "raise ImportError('libcudart')")
    found = list(doctor._devices())
    assert found[0].fix and found[0].needed


def test_a_driver_without_a_cuda_torch_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "TORCH_PROBE", 'print(\'{"gpus": [], "cuda": null}\')')
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    [finding] = doctor._devices()
    assert "Start locally" in finding.fix and not finding.needed


def test_every_decoder_is_listed_with_its_state():
    found = {finding.what: finding for finding in doctor._decoders()}
    assert list(found) == [f"data.decoder {n}" for n in ("cpu", "torchvision", "torchcodec", "nvimgcodec")]
    assert "simplejpeg" in found["data.decoder cpu"].found
    assert not any(finding.needed for finding in found.values())


def test_decoders_that_cannot_even_be_tried_are_noted(monkeypatch):
    monkeypatch.setattr(doctor, "DECODER_PROBE", "raise ImportError('simplejpeg')")
    (finding,) = doctor._decoders()
    assert "shows why" in finding.fix and not finding.needed
