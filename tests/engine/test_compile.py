"""Compiled blocks under ZeRO on two processes; of one block's graph: tests/layers/test_compiled.py."""

import json

import pytest

from tests.engine.processes import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compile")
    run("compile_worker.py", "steps", str(folder), world=2, scratch=folder, seconds=900)
    return json.loads((folder / "steps.json").read_text())


# Where autocast rounds, a graph and plain code order their sums differently.
CASES = [("zero0 fp32", 1e-5), ("zero1 fp32", 1e-5), ("zero2 fp32", 1e-5), ("zero1 bf16", 0.02)]


@pytest.mark.parametrize(("case", "tolerance"), CASES)
def test_steps_with_dropout_and_accumulation_are_those_of_plain_blocks(found, case, tolerance):
    plain, compiled = found[f"plain {case[-4:]}"], found[case]
    assert len(plain) == 3 and compiled[0]["loss/total"] != compiled[2]["loss/total"]
    for one, other in zip(plain, compiled, strict=True):
        for name, value in one.items():
            if name.startswith("loss/"):
                assert value == pytest.approx(other[name], rel=tolerance), name
        norm = "optimizer/gradient_norm"
        assert one[norm] == pytest.approx(other[norm], rel=100 * tolerance if tolerance < 0.01 else 0.05)


def test_each_kind_of_block_has_one_graph_a_precision(found):
    assert found["graphs"] == 2 * 3
