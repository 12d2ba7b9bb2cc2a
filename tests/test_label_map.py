"""Labels: by tiles, with classes left out, and of very many classes from blocks, without all logits at once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import RefineConfig
from dpseg.model import class_logits
from dpseg.model.class_logits import UNDECODED, ClassLogits, Decoded, collect
from dpseg.model.label_map import LabelMap, label_map
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter
from support.commands import python
from support.tiny import decoder_config, tiny_model

SIZE = (50, 70)
NAMES = tuple(f"class {number}" for number in range(40))


@pytest.mark.numeric
@pytest.mark.parametrize("size", [(100, 130), (7, 9), (1, 1), (300, 270), (600, 20)])
@pytest.mark.parametrize("grid", [(24, 32), (1, 1), (3, 50)])
def test_labels_are_those_of_resizing_everything_at_once(size: tuple[int, int], grid: tuple[int, int]) -> None:
    logits = torch.randn(9, *grid, generator=torch.Generator().manual_seed(0))
    plain = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    labels = label_map(logits, size)
    assert labels.dtype == np.int32
    assert np.array_equal(labels, plain.numpy())


@pytest.mark.parametrize(
    ("background", "expected"), [(None, [1, 0]), (0.5, [-1, 0]), (0.1, [1, 0]), (1.0, [-1, -1]), (0.0, [1, 0])]
)
def test_background_is_what_scores_below_the_threshold(background: float | None, expected: list[int]) -> None:
    logits = torch.tensor([[[-3.0, 1.0]], [[-2.0, -5.0]]])
    assert label_map(logits, (1, 2), background=background).tolist() == [expected]


@pytest.mark.numeric
def test_with_seds_protocol_labels_are_those_of_resized_scores() -> None:
    logits = 6 * torch.randn(9, 12, 16, generator=torch.Generator().manual_seed(0))
    scores = F.interpolate(logits.sigmoid()[None], size=(100, 130), mode="bilinear", align_corners=False)[0]
    labels = label_map(logits, (100, 130), resize_scores=True)
    assert np.array_equal(labels, scores.argmax(dim=0).numpy())
    assert not np.array_equal(labels, label_map(logits, (100, 130)))
    background = label_map(logits, (100, 130), background=0.9, resize_scores=True)
    assert np.array_equal(background == -1, (scores.amax(dim=0) < 0.9).numpy())
    assert (label_map(logits, (100, 130), background=1.0, resize_scores=True) == -1).all()


def test_classes_that_were_not_decoded_never_win() -> None:
    logits = torch.randn(4, 5, 6)
    logits[2] = -torch.inf
    labels = label_map(logits, (40, 50))
    assert 2 not in labels
    assert np.array_equal(labels, label_map(logits.nan_to_num(neginf=-1e4), (40, 50)))


def test_of_equal_classes_the_first_wins_however_they_come() -> None:
    logits = torch.zeros(3, 4, 4)
    assert (label_map(logits, (9, 9)) == 0).all()
    one_by_one = LabelMap((9, 9))
    for index in range(3):
        one_by_one.add(torch.tensor([index]), logits[:1])
    assert (one_by_one.labels() == 0).all()


def test_847_classes_on_12_megapixels_are_labelled_by_the_logits_around_each_pixel() -> None:
    coarse = torch.randn(1, 847, 4, 6, generator=torch.Generator().manual_seed(1))
    logits = F.interpolate(coarse, size=(96, 128), mode="bilinear")[0]
    labels = label_map(logits, (3000, 4000))
    for row in (10, 1500, 2999):
        y = int(min(max((row + 0.5) * 96 / 3000 - 0.5, 0), 95))
        for column in (0, 2222, 3999):
            x = int(min(max((column + 0.5) * 128 / 4000 - 0.5, 0), 127))
            near = logits[:, y : y + 2, x : x + 2].amax(dim=(1, 2))
            assert near[labels[row, column]] >= near.max() - 0.5


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes 40 classes very many."""
    monkeypatch.setattr(class_logits, "ALL_CLASSES", 30)
    monkeypatch.setattr(class_logits, "KEPT_CLASSES", 8)


@pytest.fixture
def logits() -> Tensor:
    """(40, 10, 14): a few classes lead."""
    random = torch.Generator().manual_seed(3)
    smooth = F.interpolate(torch.randn(1, 40, 3, 3, generator=random), (10, 14), mode="bilinear")[0]
    return smooth + 0.1 * torch.randn(40, 10, 14, generator=random)


def blocks(logits: Tensor) -> list[ClassLogits]:
    return [ClassLogits(part, logits[part]) for part in torch.arange(len(logits)).split(7)]


def decoded(logits: Tensor, background: float | None = None, resize_scores: bool = False) -> Decoded:
    return collect(blocks(logits), len(logits), LabelMap(SIZE, background, resize_scores))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("background", [None, 0.8])
@pytest.mark.parametrize("resize_scores", [False, True])
def test_blocks_give_the_labels_of_all_at_once(logits: Tensor, background: float | None, resize_scores: bool) -> None:
    expected = label_map(logits, SIZE, background, resize_scores)
    found = decoded(logits, background, resize_scores)
    assert found.kept is not None
    assert np.array_equal(found.labels(), expected)
    assert (found.labels() == -1).any() == (background is not None)
    best, leaders = logits.max(dim=0)
    assert torch.equal(found.best, best)
    assert torch.equal(found.leaders, leaders)
    in_another_order = collect(reversed(blocks(logits)), 40, LabelMap(SIZE, background, resize_scores))
    assert np.array_equal(in_another_order.labels(), expected)


@pytest.mark.usefixtures("few")
def test_the_classes_that_lead_at_most_positions_are_kept(logits: Tensor) -> None:
    found = decoded(logits)
    assert found.kept is not None
    assert len(found.kept) == 8
    assert found.kept.tolist() == sorted(found.kept.tolist())
    assert torch.equal(found.logits, logits[found.kept])
    counts = torch.bincount(logits.argmax(dim=0).flatten(), minlength=40)
    assert len(counts.nonzero()) > 8
    assert counts[found.kept].min() >= counts[[k for k in range(40) if k not in found.kept.tolist()]].max()


@pytest.mark.usefixtures("few")
def test_a_result_of_very_many_classes_has_the_certainties_of_all_logits(logits: Tensor, tmp_path: Path) -> None:
    many = Segmentation.of(decoded(logits), NAMES)
    plain = Segmentation(label_map(logits, SIZE), NAMES, logits.numpy())
    assert np.array_equal(many.labels, plain.labels)
    assert many.kept is not None
    assert many.areas == plain.areas
    assert len(plain.areas) > len(many.kept)
    assert many.confidences == pytest.approx(plain.confidences, abs=1e-5)
    assert many.scores.shape == (8, *SIZE)
    present, absent = int(many.kept[3]), next(k for k in range(40) if k not in many.kept)
    rows = many.logits_of([NAMES[absent], NAMES[present]])
    assert (rows[0] == UNDECODED).all()
    assert np.array_equal(rows[1], logits[present].numpy())
    assert np.array_equal(plain.logits_of([NAMES[absent], NAMES[present]]), logits[[absent, present]].numpy())
    (path,) = many.save(tmp_path, formats=("npz",))
    with np.load(path) as saved:  # which says which classes its logits are of
        assert np.array_equal(saved["classes"], many.kept)
        assert saved["logits"].shape == (8, 10, 14)
        assert len(saved["names"]) == 40


@pytest.mark.parametrize("refine", [False, True])
def test_a_photo_is_labelled_alike_with_few_and_very_many_classes(
    monkeypatch: pytest.MonkeyPatch, refine: bool
) -> None:
    model = tiny_model(decoder_config(image_size=64, keep_aspect=True, logit_scale=10.0), trained=True)
    segmenter = Segmenter(model, refinement=RefineConfig(0.0, 0.0, 1))
    prompts = segmenter.prompts(NAMES)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    plain = segmenter(photo, prompts=prompts, refine=refine)
    monkeypatch.setattr(class_logits, "ALL_CLASSES", 10)
    many = segmenter(photo, prompts=prompts, refine=refine)
    assert plain.kept is None
    assert many.kept is not None
    assert np.array_equal(many.labels, plain.labels)
    assert many.prompts == plain.prompts
    assert refine == any("crop" in source for source in many.prompts)


PEAKS = """
import torch
from pathlib import Path
from dpseg.model import block_decoder, class_logits
from support.random_prompts import prompts_for
from support.tiny import decoder_config, tiny_model

block_decoder.KEPT_BYTES = 2**20
class_logits.ALL_CLASSES, class_logits.KEPT_CLASSES = 64, 16
model = tiny_model(decoder_config())
for count in (100, 100, 1000):  # at first, what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    with torch.inference_mode():
        pyramid = model.encode(torch.rand(1, 3, 128, 128))
        model.decode_photo(pyramid, prompts_for(model, count), (150, 200)).labels()
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    _, few, many = (1024 * int(line) for line in python(PEAKS).stdout.split())
    assert many - few < 3e6  # all logits of 1,000 classes take 4 MB here, and all inputs of the last stage 33 MB
