"""`dpseg explain gap`: which regions and references it takes, its distances, its layout, and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.data.folder import FolderDataset
from dpseg.data.labelled import MappedSet, MaskFormat, Pairs
from dpseg.errors import ConfigError, DataError, MissingExtraError
from dpseg.explain.figures import MOST_COLOURS, check_drawing, gap_figure
from dpseg.explain.gap import KINDS, Gap, GapConfig, measure_gap, plan_gap, plane_points
from dpseg.images import to_tensor
from dpseg.model.dpseg import DPSeg
from dpseg.palette import palette
from dpseg.segmenter import Segmenter
from support.labelled_set import NAMES, write_set

SIDE = 128  # 4 x 4 positions of the tiny encoder's E
CONFIG = ModelConfig(
    encoder="tiny", image_size=SIDE, keep_aspect=True, templates=3, logit_scale=10.0, tune_encoder=False
)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(DPSeg(CONFIG), cache=EmbeddingCache(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight photos, of which four are the split."""
    root = write_set(tmp_path / "shapes", photos=8, side=SIDE)
    (root / "val.txt").write_text("photo0\nphoto1\nphoto2\nphoto3\n")
    return root


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_gap(classes: int, regions: int, seed: int = 0) -> Gap:
    random = np.random.default_rng(seed)
    owners = np.concatenate([np.arange(classes), random.integers(0, classes, regions - classes)])
    prompts = {kind: unit(random.normal(size=(classes, 8))).astype(np.float32) for kind in KINDS}
    rows = unit(random.normal(size=(regions, 8))).astype(np.float32)
    return Gap(tuple(f"class {k}" for k in range(classes)), prompts, rows, owners, photos=regions)


def test_distances_are_averaged_by_class() -> None:
    gap = random_gap(classes=4, regions=15)
    for kind in KINDS:
        found = gap.distances(kind)
        for k in range(4):
            by_class = [
                np.mean([1 - gap.prompts[kind][k] @ gap.regions[n] for n in range(15) if gap.owners[n] == j])
                for j in range(4)
            ]
            assert found.own[k] == pytest.approx(by_class[k], abs=1e-6)
            assert found.other[k] == pytest.approx(np.mean(by_class[:k] + by_class[k + 1 :]), abs=1e-6)
        figures = gap.to_json()["mean"][kind]
        assert figures == {"own": pytest.approx(found.own.mean()), "other": pytest.approx(found.other.mean())}
        assert f"| {kind} | {found.own.mean():.3f} | {found.other.mean():.3f} |" in gap.to_markdown()


def test_regions_are_averages_of_the_dense_embedding(segmenter: Segmenter, root: Path) -> None:
    data = FolderDataset(root, "val")
    gap = measure_gap(segmenter, plan_gap(segmenter, data, FolderDataset(root), GapConfig(seed=3)))
    assert gap.names == NAMES[1:]
    expected = []
    for index in range(4):
        sample = data[index]
        with torch.no_grad():
            dense = segmenter.model.encoder.pyramid(to_tensor(sample.image)[None]).dense[0].numpy()  # (D, 4, 4)
        for value in (1, 2, 3):
            share = (sample.mask == value).reshape(4, 32, 4, 32).mean(axis=(1, 3))
            if share.sum() >= 1:
                expected.append((value - 1, unit((dense * share).sum(axis=(1, 2)) / share.sum())))
    found = sorted(zip(gap.owners.tolist(), gap.regions.tolist(), strict=True))
    wanted = sorted((owner, row.tolist()) for owner, row in expected)
    assert [owner for owner, _ in found] == [owner for owner, _ in wanted]
    assert np.allclose([row for _, row in found], [row for _, row in wanted], atol=1e-5)


def test_prompts_are_those_of_the_model(segmenter: Segmenter, root: Path) -> None:
    plan = plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), GapConfig(references=1))
    gap = measure_gap(segmenter, plan)
    pool = FolderDataset(root)
    for k, value in enumerate(plan.classes):
        (index,) = plan.drawn[value]
        assert pool.stems[index] not in {"photo0", "photo1", "photo2", "photo3"}
        embeddings = segmenter.prompts([NAMES[value]], bank=False).embeddings
        text = embeddings.text[0].numpy()  # (3, D)
        visual = gap.prompts["visual"][k]
        assert np.allclose(gap.prompts["text"][k], unit(text.mean(axis=0)), atol=1e-5)
        assert np.allclose(gap.prompts["dual"][k], unit((text + visual).mean(axis=0)), atol=1e-5)
        assert np.linalg.norm(visual) == pytest.approx(1, abs=1e-5)


def test_a_colour_is_nearer_to_its_own_pictures(segmenter: Segmenter, root: Path) -> None:
    data, pool = FolderDataset(root, "val"), FolderDataset(root)
    visual = measure_gap(segmenter, plan_gap(segmenter, data, pool, GapConfig())).distances("visual")
    assert (visual.own < visual.other).all()


def test_what_covers_less_than_one_position_is_skipped(segmenter: Segmenter, root: Path) -> None:
    for number, pixels in enumerate((32 * 32 - 1, 32 * 32, 32 * 32 - 1, 32 * 32)):
        mask = np.zeros(SIDE * SIDE, np.uint8)
        mask[:pixels] = 1
        mask[-2000:] = 2
        Image.fromarray(mask.reshape(SIDE, SIDE)).save(root / "masks" / f"photo{number}.png")
    plan = plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), GapConfig())
    assert plan.names == ("red square", "blue disc")
    assert {photo for photo, numbers in plan.shown.items() if 0 in numbers} == {1, 3}
    assert {photo for photo, numbers in plan.shown.items() if 1 in numbers} == {0, 1, 2, 3}


def test_one_class_cannot_be_compared(segmenter: Segmenter, root: Path) -> None:
    for number in range(4, 8):
        Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(root / "masks" / f"photo{number}.png")
    with pytest.raises(DataError, match="1 classes are shown both by the split"):
        plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), GapConfig())


def test_the_most_shown_classes_are_taken_and_the_seed_draws_their_photos(segmenter: Segmenter, root: Path) -> None:
    path = root / "masks" / "photo0.png"
    mask = np.array(Image.open(path))
    Image.fromarray(np.where(mask == 2, 0, mask).astype(np.uint8)).save(path)
    data, pool = FolderDataset(root, "val"), FolderDataset(root)
    assert plan_gap(segmenter, data, pool, GapConfig(classes=2)).names == ("red square", "green stripe")
    plans = [plan_gap(segmenter, data, pool, GapConfig(per_class=2, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert plans[0].shown == plans[1].shown
    assert len({json.dumps(sorted(plan.shown.items())) for plan in plans}) > 1
    for plan in plans:
        numbers = [number for several in plan.shown.values() for number in several]
        assert sorted(numbers) == [0, 0, 1, 1, 2, 2]


def test_classes_without_references_are_named(segmenter: Segmenter, root: Path) -> None:
    for number in range(4, 8):
        path = root / "masks" / f"photo{number}.png"
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 3, 255, mask).astype(np.uint8)).save(path)
    plan = plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), GapConfig())
    assert plan.left_out == ("green stripe",)
    assert plan.names == ("red square", "blue disc")


def test_a_class_that_stands_for_several_names_is_no_class_here(segmenter: Segmenter, root: Path) -> None:
    def mapped(numbers: range) -> MappedSet:
        stems = tuple(f"photo{number}" for number in numbers)
        photos = tuple(root / "images" / f"{stem}.png" for stem in stems)
        masks = tuple(root / "masks" / f"{stem}.png" for stem in stems)
        table = np.arange(4, dtype=np.int32)
        form = MaskFormat(NAMES, table, 255, prompt_names=("wall", "floor", *NAMES[1:]), prompt_classes=(0, 0, 1, 2, 3))
        return MappedSet("shapes", root, Pairs(stems, photos, masks, "", ""), form)

    plan = plan_gap(segmenter, mapped(range(4)), mapped(range(4, 8)), GapConfig())
    assert plan.classes == (1, 2, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GapConfig(references=0), "references 0"),
        (GapConfig(per_class=0), "per-class 0"),
        (GapConfig(classes=1), "classes 1"),
    ],
)
def test_numbers_out_of_range(segmenter: Segmenter, root: Path, config: GapConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), config)


def test_the_layout_keeps_neighbours_together_and_repeats() -> None:
    random = np.random.default_rng(0)
    centres = np.eye(3, 8) * 10
    owners = np.repeat(np.arange(3), 12)
    rows = unit(centres[owners] + random.normal(size=(36, 8))).astype(np.float32)
    prompts = {kind: unit(centres + random.normal(size=(3, 8))).astype(np.float32) for kind in KINDS}
    gap = Gap(("a", "b", "c"), prompts, rows, owners, photos=36)
    points = plane_points(gap, seed=1)
    assert points.shape == (3 * 3 + 36, 2)
    assert np.array_equal(points, plane_points(gap, seed=1))
    labels = np.concatenate([np.arange(3)] * 3 + [owners])
    gaps = np.square(points[:, None] - points[None]).sum(axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert (labels[gaps.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("classes", [MOST_COLOURS, MOST_COLOURS + 1])
def test_colours_tell_few_classes_apart_or_kinds(classes: int) -> None:
    gap = random_gap(classes, regions=40)
    points = np.arange(2 * (3 * classes + 40), dtype=np.float32).reshape(-1, 2)
    figure = gap_figure(gap, points, "shapes")
    drawn = {part.get_label(): part for part in figure.axes[0].collections}
    assert np.array_equal(drawn["visual"].get_offsets(), points[classes : 2 * classes])
    assert np.array_equal(drawn["image"].get_offsets(), points[3 * classes :])
    colours = {kind: part.get_facecolors()[:, :3] for kind, part in drawn.items()}
    if classes <= MOST_COLOURS:
        assert np.allclose(colours["image"], palette(classes)[gap.owners] / 255)
        assert np.allclose(colours["dual"], palette(classes) / 255)
    else:
        used = {kind: np.unique(rows, axis=0) for kind, rows in colours.items()}
        assert {len(rows) for rows in used.values()} == {1}
        assert len(np.unique(np.concatenate(list(used.values())), axis=0)) == 4
        red, green, blue = used["image"][0]
        assert max(red, green, blue) - min(red, green, blue) < 0.05  # grey
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert f"text, distance {gap.distances('text').own.mean():.2f}" in texts
    assert ("class 0" in texts) == (classes <= MOST_COLOURS)


@pytest.fixture
def model(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DPSEG_CACHE", str(tmp_path / "cache"))
    segmenter.model.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_command_prints_the_table_and_writes_both_files(
    segmenter: Segmenter, model: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "gap"
    asked = ["explain", "gap", str(root), "--model", model, "--out", str(out), "--references", "2", "--per-class", "3"]
    assert run([*asked, "--seed", "5", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    config = GapConfig(references=2, per_class=3, seed=5)
    expected = measure_gap(segmenter, plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), config))
    assert expected.to_markdown() in printed
    assert printed.startswith(f"shapes val: 3 classes, {len(expected.regions)} regions of {expected.photos} photos")
    written = json.loads((out / "gap.json").read_text())
    assert written["gap"] == {"references": 2, "seed": 5, "classes": None, "per_class": 3}
    assert written["mean"]["dual"]["own"] == pytest.approx(expected.distances("dual").own.mean(), abs=1e-6)
    assert set(written["classes"]) == set(NAMES[1:])
    assert sum(entry["regions"] for entry in written["classes"].values()) == written["regions"]
    with Image.open(out / "gap.png") as picture:
        assert picture.width > 900
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_mistakes_are_one_line(model: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["explain", "gap", str(root), "--model", model, "--out", str(tmp_path / "out")]
    for more, message in (
        (["--split", "all"], "no photos outside the split"),
        (["--split", "vall"], "vall"),
        (["--classes", "1"], "classes 1"),
    ):
        assert run([*asked, *more]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("package", ["sklearn.manifold", "matplotlib.figure"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"dpseg\[train\]"):
        check_drawing()
