"""A bench's result for reading: alone, beside a saved one, and its parts beside their floors."""

import copy
import json

import pytest

from dsvlp.errors import RunError
from dsvlp.reports import bench


def result(**medians: float) -> dict:
    figures = [
        {"name": name, "unit": "ms", "values": [value], "median": value, "lowest": value, "highest": value}
        for name, value in medians.items()
    ]
    return {
        "format": 2,
        "bench": "step",
        "figures": figures,
        "hardware": {"device": "CPU", "cores": 2, "load_average": 0.5},
        "settings": {"threads": 1},
        "versions": {"torch": "2"},
        "recipe": {"batch": {"micro_pairs": 4}},
    }


def cells(table: str) -> dict[str, list[str]]:
    return {line.split("  ")[0]: line.split()[1:] for line in table.splitlines()[2:]}


def test_the_ratio_to_a_saved_result_stands_beside_with_its_spread_and_differences_are_named():
    saved, now = result(forward=100.0, idle=0.0, gone=5.0), result(forward=150.0, idle=3.0, new=1.0)
    now["recipe"]["batch"]["micro_pairs"] = 8
    saved["figures"][0] |= {"lowest": 90.0, "highest": 120.0}
    lines = bench.show(now, saved)
    found = cells(lines[0])
    assert found["forward"] == ["ms", "150", "150", "150", "100", "90", "to", "120", "1.500"]
    assert found["idle"] == ["ms", "3", "3", "3", "0", "0", "to", "0"]  # no ratio to nothing
    assert found["new"] == ["ms", "1", "1", "1"]
    assert lines[-1] == "differs from the saved one in: batch.micro_pairs: 4 -> 8"


def test_another_machine_or_version_is_warned_of_and_another_load_is_not():
    saved = result(forward=100.0)
    busy, other, newer, loaded = (copy.deepcopy(saved) for _ in range(4))
    busy["hardware"]["load_average"] = 2.4
    other["hardware"]["device"] = "H100"
    newer["versions"]["torch"] = "3"
    loaded["hardware"]["load_average"] = 9.0
    assert not any("WARNING" in line for line in bench.show(busy, saved))
    assert any("WARNING" in line and 'device: "CPU" -> "H100"' in line for line in bench.show(other, saved))
    assert any("WARNING" in line and 'torch: "2" -> "3"' in line for line in bench.show(newer, saved))
    assert any("WARNING: a busy machine" in line for line in bench.show(saved, loaded))


def test_a_result_of_another_bench_is_refused(tmp_path):
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(result(forward=1.0)))
    assert bench.read(path, "step") == result(forward=1.0)
    with pytest.raises(RunError, match="bench decode"):
        bench.read(path, "decode")


def test_without_a_saved_result_there_is_no_such_column():
    lines = bench.show(result(forward=150.0))
    assert "ratio" not in lines[0] and any("hardware: device CPU" in line for line in lines)


def test_parts_stand_beside_their_floors_and_what_is_furthest_above_is_named():
    parts = {
        "part/fusion": 40.0,
        "floor/fusion": 39.0,
        "part/optimizer": 50.0,
        "floor/optimizer": 20.0,
        "part/prepare": 6.0,
        "part/unexplained": 4.0,
        "part/the whole step, its parts marked": 100.0,
    }
    lines = bench.parts(result(whole=90.0, **parts))
    found = cells(lines[0])
    assert found["optimizer"] == ["50", "50", "50", "50", "20", "30"]
    assert found["prepare"] == ["6", "6", "6", "6"]
    assert lines[2] == "furthest above their floors: optimizer 30 ms, prepare 6 ms, fusion 1 ms"
    assert "part/" not in bench.show(result(whole=90.0, **parts))[0]
    assert bench.parts(result(whole=90.0)) == []
