"""The parts of `dpseg ablate`: its command line, how measurements are gathered, and what runs share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dpseg.ablation.run import group, share_regions, training_seconds
from dpseg.ablation.variants import Measurement
from dpseg.cli import run as dpseg
from support.labelled_set import write_set


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    root = write_set(tmp_path / "shapes", photos=3)
    (root / "val.txt").write_text("photo2\n")
    return root


@pytest.fixture
def recipe(data: Path) -> Path:
    model = {"encoder": "tiny", "image_size": 64, "templates": 1, "widths": [8, 8], "image_widths": [4], "heads": 2}
    small = {"batch_size": 1, "crop": 64, "photo_size": 64, "classes": 3}
    path = data.parent / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": model, "data": [{"name": "shapes"}], "data_root": str(data.parent), **small})
    )
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "MODEL", "--tables", "fusion"], "table 'fusion' needs trainings of its own; give --config"),
        (["--model", "MODEL", "--iterations", "3"], "'--iterations' would change a recipe"),
        (["--model", "MODEL", "--config", "RECIPE"], "give either a recipe"),
        ([], "give either a recipe"),
        (["--model", "MODEL", "--seeds", "2"], "seeds 2 with 1 models"),
        (["--config", "RECIPE", "--seeds", "0"], "seeds 0: give 1 or more"),
        (["--config", "RECIPE", "--tables", "colours"], "table 'colours' is unknown"),
        (["--config", "RECIPE", "--noise", "loud"], "noise 'loud' is no strength"),
        (["--config", "RECIPE", "--processes", "0"], "processes 0"),
        (["--config", "RECIPE", "--model.guidence", "none"], "unknown key 'guidence'"),
        (["--config", "RECIPE", "--split", "all"], "no photos for reference pictures"),
        (["--config", "RECIPE", "--references", "0"], "references 0"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(
    words: list[str], message: str, recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"MODEL": str(tmp_path), "RECIPE": str(recipe)}
    arguments = ["ablate", "--data", str(data), *(names.get(word, word) for word in words)]
    assert dpseg([*arguments, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out" / "full").exists()


def test_the_command_line_takes_changes_of_the_recipe(
    recipe: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--config {recipe} --data shapes --data-root {data.parent} --out {tmp_path} --seeds 1 --limit 1 --seed 4"
    words += " --iterations 1 --model.guidance none --tables prompts --references 1 --threads 1 --device cpu"
    assert dpseg(["ablate", *words.split()]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "# Ablations of recipe with --seed 4 --iterations 1 --model.guidance none on shapes val"
    )
    assert "[1/1] full seed 4: training" in captured.err
    made = yaml.safe_load((tmp_path / "full" / "seed4" / "recipe.yaml").read_text())
    assert (made["iterations"], made["seed"], made["model"]["guidance"]) == (1, 4, "none")


def test_measurements_are_gathered_without_a_repetition() -> None:
    wanted = [
        Measurement("text"),
        Measurement("pictures"),
        Measurement("both"),
        Measurement("both", refine=True),
        Measurement("both", noise=0.5),
        Measurement("text", noise=0.5),
    ]
    gathered = group(wanted)
    assert sorted(
        Measurement(kind, refine, noise).name for noise, kinds, both in gathered for kind in kinds for refine in both
    ) == sorted(one.name for one in wanted)
    assert len(gathered) == 3


def test_seconds_are_of_all_steps(tmp_path: Path) -> None:
    assert training_seconds(tmp_path, 10) is None
    (tmp_path / "metrics.csv").write_text("step,loss,seconds_a_step\n4,1.0,0.5\n8,0.9,1.5\n")
    assert training_seconds(tmp_path, 8) == pytest.approx(4 * 0.5 + 4 * 1.5)
    assert training_seconds(tmp_path, 10) == pytest.approx(10.0)


def test_regions_are_shared_but_never_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "regions.safetensors").write_text(name)
    share_regions(tmp_path / "new", [tmp_path / "none", tmp_path / "two", tmp_path / "one"])
    assert (tmp_path / "new" / "regions.safetensors").read_text() == "two"
    share_regions(tmp_path / "one", [tmp_path / "two"])
    assert (tmp_path / "one" / "regions.safetensors").read_text() == "one"
    share_regions(tmp_path / "first", [tmp_path / "none"])
    assert not (tmp_path / "first" / "regions.safetensors").exists()
