import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dsvlp.cli import main, recipes

ROOT = Path(__file__).parents[2]


def dsvlp(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dsvlp", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_help_answers_in_half_a_second():
    """The fastest of five: the limit is ours, not the machine's load."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        done = dsvlp("--help")
        seconds.append(time.perf_counter() - begun)
        assert done.returncode == 0 and all(verb in done.stdout for verb in main.VERBS)
    assert min(seconds) < 0.5


def test_every_recipe_is_loaded_and_priced_in_a_second():
    """On a login node, without torch. The fastest of three: the limit is ours, not the machine's load."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = dsvlp("recipes")
        seconds.append(time.perf_counter() - begun)
        assert done.returncode == 0 and "pretrain_fiber_grouped" in done.stdout
    assert min(seconds) < 1


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_a_file_with_a_command(verb):
    command = main.cli.get_command(click.Context(main.cli), verb)
    assert isinstance(command, click.Command)
    assert command.help, "its docstring is what --help prints"


def test_our_errors_are_one_sentence_and_exit_code_2():
    done = dsvlp("recipes", "tiny_svl", "optimizer.lrr=1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "'optimizer.lrr', did you mean 'lr'?" in done.stderr


def test_debug_shows_where_the_error_came_from():
    done = dsvlp("recipes", "nothing_like_it", DSVLP_DEBUG="1")
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'ffcv'", name="ffcv")

    monkeypatch.setattr(main.importlib, "import_module", absent)
    with pytest.raises(main.MissingDependency, match=r"'ffcv'.*dsvlp doctor"):
        main.cli.get_command(click.Context(main.cli), "data")


def test_an_unknown_verb_is_refused():
    done = dsvlp("trian")
    assert done.returncode == 2 and "trian" in done.stderr


def test_recipes_lists_every_shipped_recipe_with_its_cost():
    printed = CliRunner().invoke(recipes.command, []).output
    for path in (ROOT / "dsvlp/recipes").glob("*.toml"):
        line = next(line for line in printed.splitlines() if line.split()[:1] == [path.stem])
        numbers = [word.replace(",", "") for word in line.split()[2:6]]
        assert all(float(number) > 0 for number in numbers)
    assert "470 V100-h" in printed and "4,000 V100-h (estimate)" in printed


def test_a_recipe_says_how_many_images_its_pairs_have_and_which_pixels_it_asks_for_in_vain():
    words = ["tiny_pixelbert", "model.pixels=100", "data.captions_per_image=4"]
    printed = CliRunner().invoke(recipes.command, words).output
    assert "note: data.captions_per_image = 4: the 64 pairs of a step have 16 images" in printed
    assert "note: model.pixels = 100, but no image has more than 9 cells" in printed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nosuch", "timm has no model of this name"),
        ("vit_tiny_patch16_224", "makes (1, 197, 192) of a picture of 224 x 224"),
        ("coatnet_0_rw_224", "reads no picture of 96 x 160"),
    ],
)
def test_a_backbone_that_is_no_cnn_of_stride_32_has_no_price(name, reason):
    done = dsvlp("recipes", "tiny_pixelbert", f"model.image.name={name}")
    assert done.returncode == 2 and reason in done.stderr and "resnet50" in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_name_type_default_and_meaning():
    lines = CliRunner().invoke(recipes.command, ["--keys"]).output.splitlines()
    assert "optimizer.lr: number > 0" in lines
    assert any(
        line.startswith("data.augment.scale: [number > 0, number > 0] = [0.8, 1.2]  # of") for line in lines
    )
    start = "model (system svl).image (kind resnet).segmentation: "
    assert any(line.startswith(start) for line in lines)
    zero = next(line for line in lines if line.startswith("engine.zero: "))
    assert '"zero1" | "zero2"' in zero and zero.endswith('= "zero1"')


def test_a_recipe_is_shown_resolved():
    printed = CliRunner().invoke(recipes.command, ["tiny_svl", "seed=7"]).output
    assert '"seed": 7' in printed and "cross-modality layers" in printed
