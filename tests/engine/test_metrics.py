import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsvlp.engine.metrics import Metrics, read_lines, truncate


def write(folder, steps, start=0, pairs=10):
    metrics = Metrics(folder, start, start * pairs, float(start * 3), "cpu")
    for step in steps:
        metrics.scalars(
            step, step * pairs, step * 3.0, {"loss/total": 100.0 * start + step, "time/data": 0.5}
        )
    return metrics


def points(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_resumed_run_leaves_each_point_once_on_every_axis(tmp_path):
    write(tmp_path, range(1, 9)).close()
    write(tmp_path, range(6, 11), start=5).close()
    expected = [float(step) for step in range(1, 6)] + [500.0 + step for step in range(6, 11)]
    for axis, folder, tag in (
        (1, tmp_path / "tensorboard", "loss/total"),
        (10, tmp_path / "tensorboard" / "by_samples", "by_samples/loss/total"),
        (3, tmp_path / "tensorboard" / "by_cpu_seconds", "by_cpu_seconds/loss/total"),
    ):
        found = points(folder, tag)
        assert [step for step, _ in found] == [axis * step for step in range(1, 11)]
        assert [value for _, value in found] == expected
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 11))
    assert [line["loss/total"] for line in read_lines(tmp_path / "metrics.jsonl")] == expected


def test_a_torn_last_line_is_removed_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    truncate(path, 5)
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


def test_a_full_disk_ends_no_run_not_even_at_its_end(tmp_path, caplog):
    metrics = write(tmp_path, [1])
    metrics._lines.close()
    metrics._lines = open("/dev/full", "a", buffering=1)  # noqa: SIM115, its every write fails
    metrics.scalars(2, 20, 6.0, {"loss/total": 1.0})
    metrics.close()
    assert caplog.text.count("No space left on device") == 2


def test_values_that_are_not_numbers_stay_valid_json(tmp_path):
    metrics = write(tmp_path, [])
    metrics.scalars(1, 10, 3.0, {"loss/total": float("nan"), "optimizer/gradient_norm": float("inf")})
    metrics.close()
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (line["loss/total"], line["optimizer/gradient_norm"]) == ("nan", "inf")


def test_pictures_texts_and_hparams_stand_in_the_runs_own_folder(tmp_path):
    metrics = write(tmp_path, [1])
    metrics.image(1, "inputs/joint", np.zeros((8, 8, 3), np.uint8))
    metrics.text(1, "masked_words", "* a **red** circle")
    metrics.hparams(
        {"optimizer.lr": 1e-3, "data.train": [], "model.pretrained": False}, {"final/loss/total": 2.0}
    )
    metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["inputs/joint"]
    assert "final/loss/total" in events.Tags()["scalars"]
    folders = {path.name for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()}
    assert folders == {"by_samples", "by_cpu_seconds"}


def test_folders_that_cannot_be_written_end_no_run(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file in the way")
    (tmp_path / "metrics.jsonl").mkdir()
    metrics = write(tmp_path, [1, 2])
    metrics.text(2, "a", "b")
    metrics.close()
    assert "training goes on without" in caplog.text


def test_a_disk_that_fills_up_later_ends_no_run(tmp_path, monkeypatch, caplog):
    metrics = write(tmp_path, [1])
    board = metrics._boards[""]
    monkeypatch.setattr(
        board, "add_scalar", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    metrics.scalars(2, 20, 6.0, {"loss/total": 1.0})
    metrics.scalars(3, 30, 9.0, {"loss/total": 1.0})
    metrics.close()
    assert caplog.text.count("can no longer be written") == 1
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
