"""Small JSON files: whole or not there, and read with a sentence."""

import json

import pytest

from dsvlp import files
from dsvlp.errors import RunError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path, "a test") == {"a": 1}
    files.write_json(path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads(path.read_text()) == {"a": 2}


def test_what_cannot_be_written_or_read_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        files.write_json(tmp_path / "nowhere" / "a.json", {})
    with pytest.raises(RunError, match=r"does not exist.*a folder that a test made"):
        files.read_json(tmp_path / "a.json", "a test")
    for damage in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(damage)
        with pytest.raises(RunError, match=r"a\.json"):
            files.read_json(tmp_path / "a.json", "a test")


def test_a_torn_last_line_is_no_record_and_another_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    assert files.read_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(RunError, match="is damaged"):
        files.read_lines(path)
