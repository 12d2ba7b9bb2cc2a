"""Evaluation from end to end with colours as classes: figures, reference pictures, and the report with its pictures."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dpseg.commands.evaluate import EvaluateOptions
from dpseg.commands.evaluate import evaluate as run_command
from dpseg.config import EvalConfig
from dpseg.data.folder import FolderDataset
from dpseg.data.labelled import MappedSet, MaskFormat, Pairs
from dpseg.errors import ConfigError, DataError, MissingExtraError
from dpseg.evaluation.evaluate import encode_prompts, evaluate, predict
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.paper import PAPER, common_table
from dpseg.evaluation.plan import make_plan
from dpseg.evaluation.references import sample_references
from dpseg.evaluation.report import largest_flows
from dpseg.evaluation.sheets import PANEL, draw_panels, ranked_photos
from dpseg.evaluation.table import Report, Row
from dpseg.evaluation.tally import Tally
from dpseg.plots import check_matplotlib, confusion_bars, iou_bars
from dpseg.segmenter import Segmenter
from support.downloads import ran
from support.labelled_set import save, write_labelled, write_set
from support.pictures import BLUE, RED

COLOURS = ((128, 128, 128), RED, BLUE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six photos with a grey third (background), a red and a blue one; three to train, three to evaluate."""
    thirds = np.repeat(np.arange(3), 64)[None].repeat(64, axis=0)
    masks = {str(number): np.roll(thirds, 64 * number, axis=1) for number in range(6)}
    names = ("background", "red", "blue")
    return write_labelled(tmp_path / "set", masks, names, {"train": "012", "val": "345"}, colours=COLOURS)


def measured(segmenter: Segmenter, root: Path, **options: Any) -> Report:
    """Measures pictures from the other photos, Inference I, or what else the options say."""
    config = replace(EvalConfig(prompts=("pictures",), refine=(False,)), **options)
    return evaluate(segmenter, FolderDataset(root, "val"), config, pool=FolderDataset(root))


def test_pictures_find_their_colours_in_all_kinds_of_prompts(segmenter: Segmenter, root: Path) -> None:
    steps: list[None] = []
    config = EvalConfig(prompts=("text", "pictures", "both"), refine=(False, True), references=2)
    data, pool = FolderDataset(root, "val"), FolderDataset(root)
    report = evaluate(segmenter, data, config, pool=pool, step=lambda: steps.append(None))
    assert len(steps) == report.photos == 3
    assert [(row.prompts, row.refine) for row in report.rows] == [
        (kind, refine) for kind in ("text", "pictures", "both") for refine in (False, True)
    ]
    pictures = report.rows[2].matrix
    assert pictures.pixels == 3 * 2 * 64 * 64  # the background's pixels do not count
    assert pictures.mean_iou > 0.9
    assert report.to_markdown().count("\n") == 7
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["rows"][2]["prompts"] == "pictures"
    assert written["evaluation"]["references"] == 2
    assert written["model"]["encoder"] == "tiny"


def test_the_background_can_count_or_be_a_class_as_any(segmenter: Segmenter, root: Path) -> None:
    never = measured(segmenter, root, ignore_background=False, background=0.0).rows[0].matrix
    assert never.pixels == 3 * 3 * 64 * 64
    assert never.iou[0] == 0
    always = measured(segmenter, root, ignore_background=False, background=1.0).rows[0].matrix
    assert always.matrix[:, 0].tolist() == [3 * 64 * 64] * 3
    assert always.iou.tolist() == pytest.approx([1 / 3, 0, 0])
    (root / "classes.txt").write_text("grey\nred\nblue\n")
    report = measured(segmenter, root, limit=2)
    assert report.photos == 2
    assert report.rows[0].matrix.mean_iou > 0.8


def test_classes_can_have_other_words(segmenter: Segmenter, root: Path) -> None:
    data, config = FolderDataset(root, "val"), EvalConfig(prompts=("text",), refine=(False,))
    report = evaluate(segmenter, data, config, names=["none", "crimson, red", "azure"])
    assert report.rows[0].matrix.names == ("none", "crimson", "azure")
    with pytest.raises(DataError, match="2 names for 3 classes"):
        evaluate(segmenter, data, config, names=["red", "blue"])


def test_what_an_evaluation_lacks_is_said(segmenter: Segmenter, root: Path, tmp_path: Path) -> None:
    data = FolderDataset(root, "val")
    with pytest.raises(DataError, match="no photos to cut reference pictures from"):
        evaluate(segmenter, data, EvalConfig(prompts=("both",)))
    with pytest.raises(ConfigError, match="no bank"):
        evaluate(segmenter, data, EvalConfig(prompts=("bank",)))
    other = write_labelled(tmp_path / "other", {"0": [[0]]}, ("background", "blue", "red"))
    with pytest.raises(DataError, match="have other classes than the evaluated ones"):
        evaluate(segmenter, data, EvalConfig(), pool=FolderDataset(other))


def test_references_never_come_from_the_evaluated_photos(root: Path) -> None:
    pool = FolderDataset(root)
    references = sample_references(pool, FolderDataset(root, "val").stems, count=9, seed=0)
    assert set(references) == {1, 2}  # line 0 is background
    stems = {Path(str(one.image)).stem for several in references.values() for one in several}
    assert stems == {"0", "1", "2"}
    with pytest.raises(DataError, match="besides the evaluated ones"):
        sample_references(pool, pool.stems, count=1, seed=0)


def test_the_seed_decides_and_the_larger_objects_are_drawn(root: Path) -> None:
    for number in range(6):
        mask = np.zeros((64, 192))
        mask[: 4 + 10 * number, :90] = 1
        mask[60:, 100:110] = 1  # a second region, never the largest one
        save(root / "masks" / f"{number}.png", mask)
    pool = FolderDataset(root)

    def drawn(seed: int) -> list[str]:
        return [Path(str(one.image)).stem for one in sample_references(pool, (), count=2, seed=seed)[1]]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(9)}) > 1
    assert {stem for seed in range(9) for stem in drawn(seed)} == {"3", "4", "5"}
    reference = sample_references(pool, ("0", "1", "2", "3", "4"), count=1, seed=0)[1][0]
    assert isinstance(reference.mask, np.ndarray)
    assert reference.mask.sum() == 54 * 90


def test_outlines_small_objects_and_seen_names_stand_beside_miou(segmenter: Segmenter, root: Path) -> None:
    data, config = FolderDataset(root, "val"), EvalConfig(prompts=("pictures",), refine=(False,))
    report = evaluate(segmenter, data, config, pool=FolderDataset(root), training=["crimson, red"])
    assert report.seen == (False, True, False)
    row = json.loads(json.dumps(report.to_json(), allow_nan=False))["rows"][0]
    assert row["training_names"]["seen"]["classes"] == row["training_names"]["unseen"]["classes"] == 1
    assert row["training_names"]["seen"]["miou"] == row["per_class"]["red"]["iou"]
    assert set(row["sizes"]) == {"medium"}  # a third of a photo, 64 x 64 pixels
    assert row["sizes"]["medium"]["objects"] == 6
    assert row["boundary"]["f_score"] > 0.5
    header, _, figures = report.to_markdown().splitlines()
    assert header.endswith("| boundary F | small found | seen mIoU | unseen mIoU |")
    assert figures.split(" | ")[7] == "-"  # there is no small object


def test_several_names_can_stand_for_one_class(tmp_path: Path, segmenter: Segmenter) -> None:
    """As in pas20b, where 39 names are the background."""
    files = FolderDataset(write_set(tmp_path / "set", photos=5))
    table = np.array([2, 0, 1, 2], dtype=np.int32)  # the stripe is background too
    names, prompts = ("red square", "blue disc", "background"), ("red square", "blue disc", "green stripe", "grey")
    mask_format = MaskFormat(names, table, 255, prompt_names=prompts, prompt_classes=(0, 1, 2, 2))

    def part(photos: slice) -> MappedSet:
        pairs = Pairs(files.stems[photos], files.image_paths[photos], files.mask_paths[photos], "a.zip", "b.zip")
        return MappedSet("shapes", files.root, pairs, mask_format)

    dataset = part(slice(0, 2))
    plan = make_plan(dataset, EvalConfig(prompts=("text", "both"), refine=(False,)), pool=part(slice(2, 5)))
    both = encode_prompts(segmenter, plan)["both"].prompts
    assert ["reference" in sources for sources in both.sources] == [True, True, False, False]
    encoded = segmenter.encode([dataset[0].image])
    prompt = encode_prompts(segmenter, plan, ["text"])["text"]
    labels = segmenter.decode(encoded, prompt.prompts, False)[0].labels
    assert prompt.prompts.names == prompts
    assert np.array_equal(predict(segmenter, plan, prompt, encoded, False), np.array([0, 1, 2, 2])[labels])
    report = evaluate(segmenter, dataset, EvalConfig(prompts=("text",), refine=(False,)))
    assert report.rows[0].matrix.names == names
    assert report.rows[0].matrix.pixels == 2 * 96 * 96


def test_several_data_sets_make_sections_and_one_table(tmp_path: Path, model: str) -> None:
    pytest.importorskip("matplotlib")
    first, second = write_set(tmp_path / "first", photos=5), write_set(tmp_path / "second", photos=2, seed=1)
    config = EvalConfig(prompts=("text",), ignore_background=False)
    out = tmp_path / "report"
    options = EvaluateOptions(first, config, model=model, out=out, sets=(str(second),), seen="coco")
    status, text, _ = ran(run_command, options)
    assert status == 0
    assert text.rstrip().endswith("report.md")
    report = (out / "report.md").read_text()
    assert re.findall(r"^## (.*)$", report, flags=re.MULTILINE) == ["first", "second"]
    assert re.search(r"^\| model \| first \| second \|$", report, flags=re.MULTILINE)
    assert "seen mIoU" in report
    for link in re.findall(r"\]\(<(.*)>\)", report):
        with Image.open(out / link) as picture:
            assert min(picture.size) > 100
    assert len(re.findall(r"^!\[", report, flags=re.MULTILINE)) == 8
    content = json.loads((out / "report.json").read_text())
    assert [one["data"] for one in content["sets"]] == ["first", "second"]
    row = content["sets"][0]["rows"][0]
    assert row["boundary"]["tolerance"] == 0.0075
    assert {"boundary", "sizes", "training_names", "miou"} <= set(row)


def row_of(*photos: tuple[int, int]) -> Row:
    """A row of photos of 10 pixels: value of the truth, and how many pixels of class 0 are found."""
    tally = Tally(["a", "b"])
    for index, (value, right) in enumerate(photos):
        tally.update(index, np.full((1, 10), value), np.array([[0] * right + [1] * (10 - right)]))
    return Row("text", True, tally)


def test_the_paper_stands_beside_ours() -> None:
    a150, photos, pas20b = (
        Report(name, (row_of((0, right)),), 1, 1.0, {}) for name, right in (("a150", 5), ("photos", 10), ("pas20b", 10))
    )
    lines = common_table([a150, photos], "mine").splitlines()
    assert lines[0] == "| model | A-150 | photos |"
    assert "| SED, ConvNeXt-B (paper) | 31.6 | - |" in lines
    assert "| DPSeg, ConvNeXt-L, Inference II (paper) | 37.1 | - |" in lines
    assert lines[-1] == "| mine, text, Inference II | **50.0** | **100.0** |"
    assert len(lines) == 2 + len(PAPER) + 1
    large = next(values for model, values in PAPER if model == "DPSeg, ConvNeXt-L, Inference I")
    assert "pas20" not in large  # the paper gives no figure
    assert len(common_table([photos], "mine").splitlines()) == 3
    assert len(common_table([pas20b], "mine").splitlines()) == 3


def test_the_largest_mistakes_and_the_best_middling_and_worst_photos_are_found() -> None:
    matrix = ConfusionMatrix(["a", "b", "c"])
    matrix.update(np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, -1, 1, 1, 2, 2]))
    assert largest_flows(matrix, 5) == [("a", "b", 2 / 8, 2 / 4), ("a", "none", 1 / 8, 1 / 4)]
    assert largest_flows(matrix, 1) == [("a", "b", 2 / 8, 2 / 4)]
    row = row_of((0, 3), (0, 9), (255, 0), (0, 10), (0, 5))
    assert ranked_photos(row, 4) == ([3, 1], [], [0, 4])  # photo 2 has no counted pixel
    assert ranked_photos(row, 1) == ([3], [1], [0])


def test_wrong_pixels_are_orange_and_uncounted_ones_plain() -> None:
    truth = np.zeros((40, 60), np.int32)
    guess = truth.copy()
    guess[:, 30:] = 1
    counted = np.ones((40, 60), bool)
    counted[:20] = False
    photo = Image.new("RGB", (60, 40), (100, 100, 100))
    shown, prediction, _, error = draw_panels(photo, guess, truth, counted, ["a", "b"])
    assert shown.width == error.width == PANEL
    assert prediction.width >= PANEL
    pixels = np.asarray(error)
    plain, right, wrong = (pixels[y, x].tolist() for x, y in ((300, 50), (100, 230), (300, 230)))
    assert len(set(plain)) == 1
    assert right[2] > right[0]
    assert wrong[0] > 1.5 * wrong[2]


@pytest.mark.parametrize("count", [1, 5, 60, *(pytest.param(number, marks=pytest.mark.slow) for number in (150, 310))])
def test_charts_have_room_for_any_number_of_classes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # torchmetrics, in another test, imports it
    names = [f"class {number} with a $ and a long name" for number in range(count)]
    values = np.linspace(0, 1, count).tolist()
    with Image.open(io.BytesIO(iou_bars(names, values, "title", 0.5, [True] * count))) as picture:
        assert picture.width * picture.height > 4000 * count  # pixels for each bar
        assert max(picture.size) < 6000
    flows = [(name, name, 0.1, 0.2) for name in names[:20]]
    with Image.open(io.BytesIO(confusion_bars(flows, "title"))) as picture:
        assert picture.height > 25 * len(flows)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_missing_matplotlib_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dpseg\[train\]'"):
        check_matplotlib()
    with pytest.raises(MissingExtraError):
        run_command(EvaluateOptions(Path("nowhere"), EvalConfig(), out=Path("report")), Console(), Console())
