"""The copy of the code that a job runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsvlp import origin
from dsvlp.errors import RunError
from dsvlp.launch import snapshot


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a tracked, an edited, an untracked, an ignored and a deleted file."""
    root = tmp_path / "checkout"
    (root / "dsvlp").mkdir(parents=True)
    for name in ("kept.py", "edited.py", "deleted.py"):
        (root / "dsvlp" / name).write_text("1")
    (root / "notes.txt").write_text("not code")
    (root / ".gitignore").write_text("__pycache__/\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True, timeout=20)
    (root / "dsvlp" / "edited.py").write_text("2")
    (root / "dsvlp" / "new.py").write_text("3")
    (root / "dsvlp" / "deleted.py").unlink()
    (root / "dsvlp" / "__pycache__").mkdir()
    (root / "dsvlp" / "__pycache__" / "kept.pyc").write_text("x")
    return root


def test_a_checkouts_files_are_copied_as_they_are_now(checkout, tmp_path):
    copy = snapshot.take(tmp_path / "code", checkout)
    found = {str(p.relative_to(copy)): p.read_text() for p in copy.rglob("*.py")}
    assert found == {"dsvlp/kept.py": "1", "dsvlp/edited.py": "2", "dsvlp/new.py": "3"}
    assert sorted(p.name for p in copy.iterdir()) == ["dsvlp", origin.NOTE]


def test_an_edit_makes_another_copy_and_leaves_the_first_alone(checkout, tmp_path):
    first = snapshot.take(tmp_path / "code", checkout)
    assert snapshot.take(tmp_path / "code", checkout) == first == snapshot.place(tmp_path / "code", checkout)
    (checkout / "dsvlp" / "kept.py").write_text("edited while it waits")
    second = snapshot.take(tmp_path / "code", checkout)
    assert second != first
    assert (first / "dsvlp" / "kept.py").read_text() == "1"


def test_a_copy_that_was_killed_is_made_again(checkout, tmp_path):
    copy = snapshot.place(tmp_path / "code", checkout)
    (tmp_path / "code" / f".{copy.name}.partial" / "dsvlp").mkdir(parents=True)
    (tmp_path / "code" / f".{copy.name}.partial" / "dsvlp" / "torn.py").write_text("x")
    assert not (snapshot.take(tmp_path / "code", checkout) / "dsvlp" / "torn.py").exists()


def test_an_installed_packages_files_are_copied_without_compiled_ones(tmp_path):
    (tmp_path / "site" / "dsvlp" / "__pycache__").mkdir(parents=True)
    for name in ("a.py", "__pycache__/a.pyc"):
        (tmp_path / "site" / "dsvlp" / name).write_text("1")
    (tmp_path / "site" / "torch").mkdir()
    (tmp_path / "site" / "torch" / "b.py").write_text("1")
    assert snapshot.files(tmp_path / "site") == ["dsvlp/a.py"]


def test_a_folder_that_cannot_be_written_is_named(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=f"cannot be copied to {tmp_path}/file/"):
        snapshot.take(tmp_path / "file", checkout)


def test_our_own_code_runs_from_its_copy_and_knows_its_commit(tmp_path):
    copy = snapshot.take(tmp_path)
    code = (
        "import json, dsvlp.cli.submit\n"
        "from dsvlp import config, origin, recipe\n"
        "from dsvlp.engine import dsconfig\n"
        "recipe.load('tiny_svl'), dsconfig.layouts_folder()\n"
        "print(json.dumps([dsvlp.__file__, origin.git_state()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin"},
        cwd=origin.ROOT,  # as a job runs where it was submitted: the copy's code must win
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [f"{copy}/dsvlp/__init__.py", origin.git_state()]
