"""`engine.deterministic` is on while it trains, and leaves torch as it was."""

import os

import torch

from dsvlp.engine.deterministic import deterministic

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def test_operations_are_deterministic_within_and_as_before_afterwards(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        with deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
            assert os.environ[WORKSPACE] == ":4096:8"
    finally:
        os.environ.pop(WORKSPACE, None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == filled


def test_a_choice_of_cublas_workspace_is_kept(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"


def test_where_it_is_not_wanted_nothing_changes(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ
