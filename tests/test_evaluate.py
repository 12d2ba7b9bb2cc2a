"""Evaluation from end to end with colours as classes, and where its reference pictures come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.config import EvalConfig, ModelConfig
from dpseg.data.folder import FolderDataset
from dpseg.errors import ConfigError, DataError
from dpseg.evaluation.evaluate import evaluate
from dpseg.evaluation.references import sample_references
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=1, logit_scale=10.0, tune_encoder=False)
COLOURS = ((128, 128, 128), (220, 30, 20), (20, 40, 220))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(CONFIG), cache=EmbeddingCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six photos with a grey third (background), a red and a blue one; three to train, three to evaluate."""
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(6):
        mask = np.repeat(np.roll(np.arange(3, dtype=np.uint8), number), 64)[None].repeat(64, axis=0)
        Image.fromarray(np.array(COLOURS, np.uint8)[mask]).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("background\nred\nblue\n")
    (root / "train.txt").write_text("0\n1\n2\n")
    (root / "val.txt").write_text("3\n4\n5\n")
    return root


def test_pictures_find_their_colours(segmenter: Segmenter, root: Path) -> None:
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


def test_the_background_can_count(segmenter: Segmenter, root: Path) -> None:
    data, pool = FolderDataset(root, "val"), FolderDataset(root)
    config = EvalConfig(prompts=("pictures",), refine=(False,), ignore_background=False, background=0.0)
    never = evaluate(segmenter, data, config, pool=pool).rows[0].matrix
    assert never.pixels == 3 * 3 * 64 * 64
    assert never.iou[0] == 0
    config = EvalConfig(prompts=("pictures",), refine=(False,), ignore_background=False, background=1.0)
    always = evaluate(segmenter, data, config, pool=pool).rows[0].matrix
    assert always.matrix[:, 0].tolist() == [3 * 64 * 64] * 3
    assert always.iou.tolist() == pytest.approx([1 / 3, 0, 0])


def test_a_set_without_background_uses_every_line(segmenter: Segmenter, root: Path) -> None:
    (root / "classes.txt").write_text("grey\nred\nblue\n")
    config = EvalConfig(prompts=("pictures",), refine=(False,), limit=2)
    report = evaluate(segmenter, FolderDataset(root, "val"), config, pool=FolderDataset(root))
    assert report.photos == 2
    assert report.rows[0].matrix.mean_iou > 0.8


def test_other_words_for_the_classes(segmenter: Segmenter, root: Path) -> None:
    data = FolderDataset(root, "val")
    config = EvalConfig(prompts=("text",), refine=(False,))
    report = evaluate(segmenter, data, config, names=["none", "crimson, red", "azure"])
    assert report.rows[0].matrix.names == ("none", "crimson", "azure")
    with pytest.raises(DataError, match="2 names for 3 classes"):
        evaluate(segmenter, data, config, names=["red", "blue"])


def test_what_is_missing_is_said(segmenter: Segmenter, root: Path) -> None:
    data = FolderDataset(root, "val")
    with pytest.raises(DataError, match="no photos to cut reference pictures from"):
        evaluate(segmenter, data, EvalConfig(prompts=("both",)))
    with pytest.raises(ConfigError, match="no bank"):
        evaluate(segmenter, data, EvalConfig(prompts=("bank",)))


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
        mask = np.zeros((64, 192), np.uint8)
        mask[: 4 + 10 * number, :90] = 1
        mask[60:, 100:110] = 1  # a second region, never the largest one
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
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
    data = FolderDataset(root, "val")
    config = EvalConfig(prompts=("pictures",), refine=(False,))
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


def test_references_of_another_list_of_classes_are_refused(segmenter: Segmenter, root: Path, tmp_path: Path) -> None:
    other = write_other(tmp_path / "other", root)
    with pytest.raises(DataError, match="have other classes than the evaluated ones"):
        evaluate(segmenter, FolderDataset(root, "val"), EvalConfig(), pool=FolderDataset(other))


def write_other(folder: Path, root: Path) -> Path:
    """The same photos, whose classes have other names."""
    shutil.copytree(root, folder)
    (folder / "classes.txt").write_text("background\nblue\nred\n")
    return folder
