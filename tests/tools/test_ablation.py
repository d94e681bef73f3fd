"""The ablations: what differs between members, what a killed study keeps, what its table says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dsvlp import config, recipe
from dsvlp.errors import RunError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "tools" / "ablation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def resolved(member: Any, part: str) -> dict[str, Any]:
    return config.dump(recipe.load(member.recipe, getattr(member, part)))


def test_members_of_a_seed_differ_in_model_and_objectives_alone(ablation: ModuleType) -> None:
    for study in ablation.STUDIES.values():
        made = ablation.members(study, 3, 80, 20, ["optimizer.lr=1e-4"])
        trained = [resolved(one, "pretraining") for one in made.values() if one.pretraining is not None]
        for one in trained:
            differing = config.differences(trained[0], one)
            assert all(line.startswith(("model.", "objectives.")) for line in differing), differing
            assert one["seed"] == 3 and one["schedule"]["steps"] == 80 and one["optimizer"]["lr"] == 1e-4
        assert len({json.dumps(one, sort_keys=True) for one in trained}) == len(trained)
        assert len({ablation.folder_of(name, 0) for name in study.variants}) == len(study.variants)


def test_all_variants_are_fine_tuned_alike_and_on_all_pixels(ablation: ModuleType) -> None:
    made = ablation.members(ablation.STUDIES["pixelbert"], 0, 80, 20, [])
    assert made["nothing"].pretraining is None
    (tuned,) = {json.dumps(resolved(one, "finetuning"), sort_keys=True) for one in made.values()}
    told = json.loads(tuned)
    assert told["schedule"]["steps"] == 20 and told["model"]["pixels"] == 0
    assert [name for name, table in told["objectives"].items() if table] == ["itm"]
    drawn = recipe.load("tiny_pixelbert", made["both, 6 at random"].pretraining).model
    assert 0 < drawn.pixels < drawn.cells == 9  # a shape lies in one of them: half would hide most pairs


class Fake:
    """Stands in for the verbs: notes what is run, writes what they would, fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.ran = failing, []

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        verb, *words = command[3:]
        run = Path(words[words.index("--run") + 1]) if "--run" in words else Path(words[0])
        self.ran.append(f"{verb} {run.parent.name}/{run.name}")
        if verb == self.failing:
            return SimpleNamespace(returncode=2)
        run.mkdir(parents=True, exist_ok=True)
        if verb == "train":
            line = {"step": 80, "validation/loss/itm": 0.5}
            (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            self.started = [word for word in words if word.startswith("start=")]
        if verb == "evaluate":
            losses = {"loss/itm": 0.4} if run.name == "finetuned" else {"loss/mlm": 2.0}
            (run / "scores.json").write_text(json.dumps({"losses": losses}))
        return SimpleNamespace(returncode=0)


def test_a_study_goes_on_where_it_was_interrupted(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (member,) = (
        one
        for name, one in ablation.members(ablation.STUDIES["pixelbert"], 0, 80, 20, []).items()
        if name == "MLM"
    )
    broken = Fake("export")
    monkeypatch.setattr(subprocess, "run", broken)
    with pytest.raises(RunError, match=r"dsvlp export ended with 2.*exported\.log"):
        ablation.run(member, tmp_path / "m")
    assert broken.ran == ["train m/pretrained", "evaluate m/pretrained", "export m/pretrained"]
    again = Fake()
    monkeypatch.setattr(subprocess, "run", again)
    scores = ablation.run(member, tmp_path / "m")
    assert again.ran == ["export m/pretrained", "train m/finetuned", "evaluate m/finetuned"]
    assert again.started == [f"start={tmp_path / 'm' / 'export'}"]
    assert ablation.figures(scores) == {"ITM loss": 0.4, "MLM loss before fine-tuning": 2.0}
    assert ablation.curve(tmp_path / "m") == {80: 0.5}
    monkeypatch.setattr(subprocess, "run", Fake("all of it was kept"))
    assert ablation.run(member, tmp_path / "m") == scores


def test_what_was_not_pre_trained_starts_from_nothing(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake()
    monkeypatch.setattr(subprocess, "run", fake)
    made = ablation.members(ablation.STUDIES["pixelbert"], 0, 80, 20, [])
    assert ablation.figures(ablation.run(made["nothing"], tmp_path / "m")) == {"ITM loss": 0.4}
    assert fake.ran == ["train m/finetuned", "evaluate m/finetuned"] and not fake.started


def test_the_table_has_means_spreads_and_holes(ablation: ModuleType) -> None:
    results = {"a": [{"ITM loss": 0.1}, {"ITM loss": 0.3}], "b": [{"TR R@1": 0.5}, {"TR R@1": 0.5}]}
    lines = ablation.table(results, "a < b").splitlines()
    assert lines[0] == "| variant | ITM loss | TR R@1 |"
    assert lines[2] == "| a | 0.200 (0.100 to 0.300) |  |"
    assert lines[3] == "| b |  | 0.500 (0.500 to 0.500) |"
    assert "of 2 seeds. The paper: a < b." in lines[-1]


@pytest.mark.slow
def test_two_steps_of_a_study_run_to_their_table(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = ablation.STUDIES["pixelbert"]
    some = {name: study.variants[name] for name in ("nothing", "both, 6 at random")}
    fields = {**vars(study), "variants": some}
    monkeypatch.setitem(ablation.STUDIES, "pixelbert", ablation.Study(**fields))
    small = ["data.synthetic.images=24", "batch.global_pairs=16", "batch.micro_pairs=16"]
    small += ["watch.validation_pairs=16"]
    words = ["pixelbert", "--steps", "2", "--finetuning-steps", "2", "--seeds", "1", "--out", str(tmp_path)]
    ablation.main([*words, "--pairs", "32", *small])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == result["finetuning_steps"] == 2
    assert result["results"]["both, 6 at random"][0].keys() >= {"TR R@1", "MLM loss before fine-tuning"}
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "| nothing |" in (tmp_path / "table.md").read_text()
    ablation.main([*words, "--pairs", "32", *small])  # finished: nothing is made again
    with pytest.raises(RunError, match="was made by"):
        ablation.main([*words, "--pairs", "16", *small])
