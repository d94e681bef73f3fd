"""What is refused on the login node, and in which words."""

import json
import logging

import pytest

from dsvlp import config, recipe
from dsvlp.errors import DataError, MissingDependency, RecipeError, RunError, SlurmError
from dsvlp.launch import preflight
from dsvlp.launch.sbatch import Resources
from tests.data.features.regions_of_noise import make_features
from tests.data.pictures_of_noise import make_dataset


def load(*overrides: str) -> recipe.Recipe:
    return recipe.load("tiny_svl", overrides)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (Resources(partition="hig"), "no partition 'hig'.*one of low, high.*Did you mean 'high'"),
        (Resources(nodes=3, gpus=4), "3 nodes with 4 GPUs each.*'low'.*2 with 4.*wait for ever"),
        (Resources(nodes=1, gpus=5), "1 nodes with 5 GPUs each.*2 with 4"),
        (Resources(partition="high", gpus=8, hours=2), "2 h are asked of partition 'high'.*limit, 1 h"),
        (Resources(account="nobody"), "may not charge the account 'nobody'.*lab"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused_with_what_it_has(slurm, resources, said):
    with pytest.raises(RunError, match=said):
        preflight.check_cluster(resources)


def test_what_the_cluster_has_is_accepted(slurm, caplog):
    preflight.check_cluster(Resources(nodes=2, gpus=4, hours=1000, account="lab"))
    preflight.check_cluster(Resources(partition="high", gpus=8, hours=1))
    preflight.check_cluster(Resources(nodes=2, gpus=0))
    assert not caplog.records


def test_a_cluster_without_accounting_is_a_warning(slurm, caplog):
    slurm.fails("sacctmgr", "You are not running a supported accounting_storage plugin")
    with caplog.at_level(logging.WARNING):
        preflight.check_cluster(Resources(account="lab"))
    assert "supported accounting_storage plugin" in caplog.text and "ledgers" in caplog.text


def test_a_cluster_without_a_default_partition_wants_one_named(slurm):
    slurm.says("sinfo", "low|2|gpu:4|infinite\n")
    with pytest.raises(RunError, match=r"no default partition.*--partition"):
        preflight.check_cluster(Resources())


def test_without_slurm_the_sentence_says_what_runs_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"sbatch.*login node"):
        preflight.check_cluster(Resources())


def test_a_controller_that_is_down_is_told_in_slurms_words(slurm):
    slurm.fails("sinfo", "slurm_load_partitions: Unable to contact slurm controller")
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        preflight.check_cluster(Resources())


def test_processes_that_do_not_divide_the_batch_are_refused_with_those_that_do(tmp_path):
    with pytest.raises(RecipeError, match=r"one of \[1, 2\] processes"):
        preflight.check_recipe(load(), Resources(nodes=3, gpus=1))


def test_compiled_blocks_under_a_layout_that_overlaps_are_refused_before_a_job_waits():
    with pytest.raises(RecipeError, match=r"engine\.compile = true.*overlap_comm = true"):
        preflight.check_recipe(load("engine.compile=true", "engine.zero=zero2"), Resources(gpus=2))
    preflight.check_recipe(load("engine.compile=true", "engine.zero=zero1"), Resources(gpus=2))


def test_a_time_limit_shorter_than_a_checkpoint_interval_is_refused(tmp_path):
    data = 'data.train=[{path="X.beton"}]'
    big = recipe.load("pretrain_svl", [data, "checkpoint.every_steps=70000"])
    with pytest.raises(RunError, match=r"a checkpoint comes every 70000 steps.*H200.*every_steps to [0-9]+"):
        preflight.check_recipe(big, Resources(gpus=4, hours=0.1))
    preflight.check_recipe(recipe.load("pretrain_svl", [data]), Resources(gpus=4, hours=1))


def test_a_recipe_without_data_is_refused_and_a_table_of_drawn_scenes_is_data():
    with pytest.raises(RecipeError, match=r"data.train is empty.*X\.beton.*data\.synthetic\.images"):
        preflight.check_recipe(recipe.load("pretrain_svl"), Resources(gpus=4, hours=9))
    preflight.check_recipe(
        recipe.load("pretrain_svl", ["data.synthetic.images=4000"]), Resources(gpus=4, hours=9)
    )


def test_of_a_run_that_has_trained_the_measured_step_counts(tmp_path):
    line = {"step": 3, "speed/seconds_per_step": 30.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    slow = load("checkpoint.every_steps=100")
    with pytest.raises(RunError, match=r"0.83 h at the run's last speed.*limit is 0.5 h"):
        preflight.check_recipe(slow, Resources(hours=0.5), tmp_path)
    preflight.check_recipe(slow, Resources(hours=1), tmp_path)
    preflight.check_recipe(
        load("checkpoint.every_steps=100000", "schedule.steps=10"), Resources(hours=1), tmp_path
    )


def make_run(folder, *overrides: str):
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(config.dump(load(*overrides))))
    return folder


def test_a_run_goes_on_with_its_own_recipe_and_with_what_may_change(tmp_path):
    run = make_run(tmp_path / "run")
    preflight.check_run(run, load("data.workers=1"), override=False)
    with pytest.raises(RunError, match=r"optimizer.lr: 0.001 -> 0.01.*--override"):
        preflight.check_run(run, load("optimizer.lr=0.01"), override=False)
    preflight.check_run(run, load("optimizer.lr=0.01"), override=True)


def test_a_folder_that_is_no_run_or_no_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds files but no run"):
        preflight.check_run(tmp_path, load(), override=False)
    with pytest.raises(RunError, match=r"thesis.tex is a file"):
        preflight.check_run(tmp_path / "thesis.tex" / "run", load(), override=False)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RunError, match=f"{tmp_path} cannot be written"):
        preflight.check_run(tmp_path / "new", load(), override=False)


@pytest.mark.parametrize(("state", "is_refused"), [("PENDING", True), ("RUNNING", True), ("FAILED", False)])
def test_a_run_that_waits_or_runs_is_not_submitted_twice(slurm, tmp_path, state, is_refused):
    run = make_run(tmp_path / "run")
    (run / "slurm").mkdir()
    (run / "slurm" / "submitted.json").write_text('{"job": "12"}')
    slurm.says("squeue", state)
    if is_refused:
        with pytest.raises(RunError, match=f"submitted already: job 12, {state.lower()}.*scancel 12"):
            preflight.check_run(run, load(), override=False)
    else:
        preflight.check_run(run, load(), override=False)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    pictures = make_dataset(tmp_path_factory.mktemp("objects"), "noise", [1] * 6)
    return make_features(pictures, pictures.path.with_suffix(".features"))


def of_objects(dataset, *overrides: str) -> recipe.Recipe:
    source = f'data.train=[{{path="{dataset.path}", features="{dataset.path.with_suffix(".features")}"}}]'
    fitting = ["model.objects=4", "model.feature_width=8", "objectives.mop.classes=3"]
    return recipe.load("tiny_semvlp", [source, *fitting, *overrides])


def test_region_features_are_looked_at_before_a_job_waits(objects, tmp_path):
    preflight.check_features(of_objects(objects))
    with pytest.raises(DataError, match=r"4 objects an image .*Set model\.objects=4"):
        preflight.check_features(of_objects(objects, "model.objects=36"))
    other = make_dataset(tmp_path, "other", [1] * 6, seed=3)
    with pytest.raises(DataError, match=r"there are no region features .*other\.features"):
        preflight.check_features(of_objects(other))
    other.path.with_suffix(".features").symlink_to(objects.path.with_suffix(".features"))
    with pytest.raises(DataError, match=r"of noise\.beton .*not of .*other\.beton"):
        preflight.check_features(of_objects(other))
