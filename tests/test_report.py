"""The report folder: tables beside the paper's figures, charts and sheets that can be opened."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from dpseg.commands.evaluate import EvaluateOptions, evaluate
from dpseg.config import EvalConfig, ModelConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import MissingExtraError
from dpseg.evaluation.evaluate import encode_prompts, predict
from dpseg.evaluation.evaluate import evaluate as measure
from dpseg.evaluation.metrics import ConfusionMatrix
from dpseg.evaluation.paper import PAPER, common_table
from dpseg.evaluation.plan import make_plan
from dpseg.evaluation.report import largest_flows
from dpseg.evaluation.sheets import PANEL, draw_panels, ranked_photos
from dpseg.evaluation.table import Report, Row
from dpseg.evaluation.tally import Tally
from dpseg.model.dpseg import DPSeg
from dpseg.plots import check_matplotlib, confusion_bars, iou_bars
from dpseg.segmenter import Segmenter
from support.labelled_set import write_set

MODEL = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(MODEL))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))


def report_of(name: str, wrong: int) -> Report:
    """A report with one row, of 10 pixels."""
    tally = Tally(["a", "b"])
    guess = np.zeros((1, 10), int)
    guess[0, :wrong] = 1
    tally.update(0, np.zeros((1, 10), int), guess)
    return Report(name, (Row("text", True, tally),), 1, 1.0, {}, None)


def test_several_data_sets_make_sections_and_one_table(tmp_path: Path, segmenter: Segmenter) -> None:
    pytest.importorskip("matplotlib")
    segmenter.model.save_pretrained(tmp_path / "tiny")
    first, second = write_set(tmp_path / "first", photos=5), write_set(tmp_path / "second", photos=2, seed=1)
    console = Console(file=io.StringIO(), width=400)
    options = EvaluateOptions(
        first,
        EvalConfig(prompts=("text",), ignore_background=False),
        model=str(tmp_path / "tiny"),
        out=tmp_path / "report",
        sets=(str(second),),
        seen="coco",
    )
    assert evaluate(options, console, Console(file=io.StringIO())) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == ["first", "second"]
    assert re.search(r"^\| model \| first \| second \|$", text, flags=re.MULTILINE)
    assert "seen mIoU" in text
    for link in re.findall(r"\]\(<(.*)>\)", text):
        with Image.open(tmp_path / "report" / link) as picture:
            assert min(picture.size) > 100
    assert len(re.findall(r"^!\[", text, flags=re.MULTILINE)) == 8
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["data"] for one in content["sets"]] == ["first", "second"]
    row = content["sets"][0]["rows"][0]
    assert row["boundary"]["tolerance"] == 0.0075
    assert {"boundary", "sizes", "training_names", "miou"} <= set(row)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rstrip().endswith("report.md")


def test_the_paper_stands_beside_ours() -> None:
    lines = common_table([report_of("a150", 5), report_of("photos", 0)], "mine").splitlines()
    assert lines[0] == "| model | A-150 | photos |"
    assert "| SED, ConvNeXt-B (paper) | 31.6 | - |" in lines
    assert "| DPSeg, ConvNeXt-L, Inference II (paper) | 37.1 | - |" in lines
    assert lines[-1] == "| mine, text, Inference II | **50.0** | **100.0** |"
    assert len(lines) == 2 + len(PAPER) + 1
    large = next(values for model, values in PAPER if model == "DPSeg, ConvNeXt-L, Inference I")
    assert "pas20" not in large  # the paper gives no figure
    assert len(common_table([report_of("photos", 0)], "mine").splitlines()) == 3
    assert len(common_table([report_of("pas20b", 0)], "mine").splitlines()) == 3


def test_the_largest_mistakes() -> None:
    matrix = ConfusionMatrix(["a", "b", "c"])
    matrix.update(np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, -1, 1, 1, 2, 2]))
    assert largest_flows(matrix, 5) == [("a", "b", 2 / 8, 2 / 4), ("a", "none", 1 / 8, 1 / 4)]
    assert largest_flows(matrix, 1) == [("a", "b", 2 / 8, 2 / 4)]


def test_best_middling_and_worst_photos_are_apart() -> None:
    tally = Tally(["a", "b"])
    for index, right in enumerate((3, 9, 0, 10, 5)):
        truth = np.zeros((1, 10), int) if index != 2 else np.full((1, 10), 255)
        tally.update(index, truth, np.array([[0] * right + [1] * (10 - right)]))
    row = Row("text", False, tally)
    assert ranked_photos(row, 4) == ([3, 1], [], [0, 4])  # photo 2 has no counted pixel
    assert ranked_photos(row, 1) == ([3], [1], [0])


def test_wrong_pixels_are_orange_and_uncounted_ones_plain() -> None:
    photo = Image.new("RGB", (60, 40), (100, 100, 100))
    truth = np.zeros((40, 60), np.int32)
    guess = truth.copy()
    guess[:, 30:] = 1
    counted = np.ones((40, 60), bool)
    counted[:20] = False
    shown, prediction, _, error = draw_panels(photo, guess, truth, counted, ["a", "b"])
    assert shown.width == error.width == PANEL
    assert prediction.width >= PANEL
    plain, right, wrong = (error.getpixel(place) for place in ((300, 50), (100, 230), (300, 230)))
    assert isinstance(plain, tuple)
    assert isinstance(right, tuple)
    assert isinstance(wrong, tuple)
    assert len(set(plain)) == 1
    assert right[2] > right[0]
    assert wrong[0] > 1.5 * wrong[2]


@pytest.mark.parametrize("count", [1, 5, 150, 310])
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
        evaluate(EvaluateOptions(Path("nowhere"), EvalConfig(), out=Path("report")), Console(), Console())


def test_several_names_can_stand_for_one_class(tmp_path: Path, segmenter: Segmenter) -> None:
    """As in pas20b, where 39 names are the background."""
    from dpseg.data.labelled import MappedSet, MaskFormat, Pairs

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
    report = measure(segmenter, dataset, EvalConfig(prompts=("text",), refine=(False,)))
    assert report.rows[0].matrix.names == names
    assert report.rows[0].matrix.pixels == 2 * 96 * 96


def write_voc(root: Path) -> Path:
    """A download of PASCAL VOC 2012 with two photos to train and two to measure on."""
    home = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True)
    for number in range(4):
        mask = np.zeros((60, 90), dtype=np.uint8)
        mask[10:50, 10:40], mask[20:50, 50:80] = 8, 12  # cat, dog
        mask[9, 10:40] = 255
        photo = np.array([(130, 130, 130), (200, 40, 40), (40, 40, 200)], np.uint8)[np.minimum(mask // 5, 2)]
        Image.fromarray(photo).save(home / "JPEGImages" / f"{number}.jpg")
        Image.fromarray(mask).save(home / "SegmentationClass" / f"{number}.png")
    (home / "ImageSets" / "Segmentation" / "train.txt").write_text("0\n1\n")
    (home / "ImageSets" / "Segmentation" / "val.txt").write_text("2\n3\n")
    return root


def test_benchmarks_by_name_with_pictures_from_their_train_split(tmp_path: Path, segmenter: Segmenter) -> None:
    segmenter.model.save_pretrained(tmp_path / "tiny")
    options = EvaluateOptions(
        None,
        EvalConfig(prompts=("text", "both"), refine=(True,)),
        model=str(tmp_path / "tiny"),
        sets=("pas20", "PAS20b"),
        root=write_voc(tmp_path / "voc"),
        processes=2,
    )
    console = Console(file=io.StringIO(), width=400)
    assert evaluate(options, console, Console(file=io.StringIO())) == 0
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "pas20 val: 2 photos, 20 classes" in text
    assert "pas20b val: 2 photos, 21 classes" in text
    assert "| model | PAS-20 | PAS-20b |" in text
    assert "| SED, ConvNeXt-B (paper) | 94.4 | - |" in text
    assert len(re.findall(r"^\| (?:text|both) \| II \|", text, flags=re.MULTILINE)) == 4
