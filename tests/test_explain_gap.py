"""How far prompts lie from images: which regions and references are taken, their distances, and their picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.data.folder import FolderDataset
from dpseg.data.labelled import MappedSet, MaskFormat, Pairs
from dpseg.errors import DataError, MissingExtraError
from dpseg.explain.figures import MOST_COLOURS, check_drawing, gap_figure
from dpseg.explain.gap import KINDS, Gap, GapConfig, GapPlan, measure_gap, plan_gap, plane_points
from dpseg.images import to_tensor
from dpseg.palette import palette
from dpseg.segmenter import Segmenter
from support.explaining import unit
from support.labelled_set import NAMES, save, write_set
from support.tiny import tiny_segmenter

SIDE = 128  # 4 x 4 positions of the tiny encoder's E


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("cache"), image_size=SIDE, templates=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight photos, of which four are the split."""
    return write_set(tmp_path / "shapes", photos=8, side=SIDE, splits={"val": range(4)})


def planned(segmenter: Segmenter, root: Path, **config: int) -> GapPlan:
    return plan_gap(segmenter, FolderDataset(root, "val"), FolderDataset(root), GapConfig(**config))


def change_masks(root: Path, photos: range, old: int, new: int) -> None:
    """Replaces a value in the masks of some photos."""
    for path in (root / "masks" / f"photo{number}.png" for number in photos):
        mask = np.array(Image.open(path))
        save(path, np.where(mask == old, new, mask))


def random_gap(classes: int, regions: int) -> Gap:
    random = np.random.default_rng(0)
    owners = np.concatenate([np.arange(classes), random.integers(0, classes, regions - classes)])
    prompts = {kind: unit(random.normal(size=(classes, 8))).astype(np.float32) for kind in KINDS}
    rows = unit(random.normal(size=(regions, 8))).astype(np.float32)
    return Gap(tuple(f"class {k}" for k in range(classes)), prompts, rows, owners, photos=regions)


def test_distances_are_averaged_by_class() -> None:
    gap = random_gap(classes=4, regions=15)
    for kind in KINDS:
        found = gap.distances(kind)
        for k in range(4):
            distances = [1 - gap.prompts[kind][k] @ region for region in gap.regions]
            by_class = [np.mean([distances[n] for n in np.flatnonzero(gap.owners == j)]) for j in range(4)]
            assert found.own[k] == pytest.approx(by_class[k], abs=1e-6)
            assert found.other[k] == pytest.approx(np.mean(by_class[:k] + by_class[k + 1 :]), abs=1e-6)
        figures = gap.to_json()["mean"][kind]
        assert figures == {"own": pytest.approx(found.own.mean()), "other": pytest.approx(found.other.mean())}
        assert f"| {kind} | {found.own.mean():.3f} | {found.other.mean():.3f} |" in gap.to_markdown()


@pytest.mark.numeric
def test_regions_are_averages_of_the_dense_embedding(segmenter: Segmenter, root: Path) -> None:
    data = FolderDataset(root, "val")
    gap = measure_gap(segmenter, planned(segmenter, root, seed=3))
    assert gap.names == NAMES[1:]
    wanted = []
    for index in range(4):
        sample = data[index]
        with torch.no_grad():
            dense = segmenter.model.encoder.pyramid(to_tensor(sample.image)[None]).dense[0].numpy()  # (D, 4, 4)
        for value in (1, 2, 3):
            share = (sample.mask == value).reshape(4, 32, 4, 32).mean(axis=(1, 3))
            if share.sum() >= 1:
                wanted.append((value - 1, unit((dense * share).sum(axis=(1, 2)) / share.sum()).tolist()))
    found = sorted(zip(gap.owners.tolist(), gap.regions.tolist(), strict=True))
    assert [owner for owner, _ in found] == [owner for owner, _ in sorted(wanted)]
    assert np.allclose([row for _, row in found], [row for _, row in sorted(wanted)], atol=1e-5)
    visual = gap.distances("visual")
    assert (visual.own < visual.other).all()  # a colour is nearer to its own pictures


def test_prompts_are_those_of_the_model_and_references_of_other_photos(segmenter: Segmenter, root: Path) -> None:
    plan = planned(segmenter, root, references=1)
    gap, pool = measure_gap(segmenter, plan), FolderDataset(root)
    for k, value in enumerate(plan.classes):
        (index,) = plan.drawn[value]
        assert pool.stems[index] not in {"photo0", "photo1", "photo2", "photo3"}
        text = segmenter.prompts([NAMES[value]], bank=False).embeddings.text[0].numpy()  # (3, D)
        visual = gap.prompts["visual"][k]
        assert np.allclose(gap.prompts["text"][k], unit(text.mean(axis=0)), atol=1e-5)
        assert np.allclose(gap.prompts["dual"][k], unit((text + visual).mean(axis=0)), atol=1e-5)
        assert np.linalg.norm(visual) == pytest.approx(1, abs=1e-5)


def test_what_covers_less_than_one_position_is_skipped(segmenter: Segmenter, root: Path) -> None:
    for number, pixels in enumerate((32 * 32 - 1, 32 * 32, 32 * 32 - 1, 32 * 32)):
        mask = np.zeros(SIDE * SIDE)
        mask[:pixels], mask[-2000:] = 1, 2
        save(root / "masks" / f"photo{number}.png", mask.reshape(SIDE, SIDE))
    plan = planned(segmenter, root)
    assert plan.names == ("red square", "blue disc")
    assert {photo for photo, numbers in plan.shown.items() if 0 in numbers} == {1, 3}
    assert {photo for photo, numbers in plan.shown.items() if 1 in numbers} == {0, 1, 2, 3}


def test_the_most_shown_classes_are_taken_and_the_seed_draws_their_photos(segmenter: Segmenter, root: Path) -> None:
    change_masks(root, range(1), 2, 0)
    assert planned(segmenter, root, classes=2).names == ("red square", "green stripe")
    plans = [planned(segmenter, root, per_class=2, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert plans[0].shown == plans[1].shown
    assert len({json.dumps(sorted(plan.shown.items())) for plan in plans}) > 1
    for plan in plans:
        assert sorted(number for several in plan.shown.values() for number in several) == [0, 0, 1, 1, 2, 2]


def test_classes_without_references_are_named_and_one_alone_cannot_be_compared(
    segmenter: Segmenter, root: Path
) -> None:
    change_masks(root, range(4, 8), 3, 255)
    plan = planned(segmenter, root)
    assert plan.left_out == ("green stripe",)
    assert plan.names == ("red square", "blue disc")
    change_masks(root, range(4, 8), 2, 0)
    with pytest.raises(DataError, match="1 classes are shown both by the split"):
        planned(segmenter, root)


def test_a_class_that_stands_for_several_names_is_no_class_here(segmenter: Segmenter, root: Path) -> None:
    def mapped(numbers: range) -> MappedSet:
        stems = tuple(f"photo{number}" for number in numbers)
        photos, masks = (tuple(root / part / f"{stem}.png" for stem in stems) for part in ("images", "masks"))
        table = np.arange(4, dtype=np.int32)
        form = MaskFormat(NAMES, table, 255, prompt_names=("wall", "floor", *NAMES[1:]), prompt_classes=(0, 0, 1, 2, 3))
        return MappedSet("shapes", root, Pairs(stems, photos, masks, "", ""), form)

    assert plan_gap(segmenter, mapped(range(4)), mapped(range(4, 8)), GapConfig()).classes == (1, 2, 3)


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
        assert np.ptp(used["image"][0]) < 0.05  # grey
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert f"text, distance {gap.distances('text').own.mean():.2f}" in texts
    assert ("class 0" in texts) == (classes <= MOST_COLOURS)


@pytest.mark.parametrize("package", ["sklearn.manifold", "matplotlib.figure"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"dpseg\[train\]"):
        check_drawing()
