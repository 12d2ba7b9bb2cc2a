"""Very many classes: labels, scores and regions from blocks, without all logits at once, in flat memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.config import ModelConfig, RefineConfig
from dpseg.model import class_logits
from dpseg.model.class_logits import UNDECODED, ClassLogits, Decoded, all_logits, collect
from dpseg.model.dpseg import DPSeg
from dpseg.model.label_map import LabelMap, label_map
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter

SIZE = (50, 70)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes 40 classes very many."""
    monkeypatch.setattr(class_logits, "ALL_CLASSES", 30)
    monkeypatch.setattr(class_logits, "KEPT_CLASSES", 8)


def some_logits(count: int = 40) -> Tensor:
    """(K, 10, 14): a few classes lead."""
    random = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, count, 3, 3, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (10, 14), mode="bilinear")[0]
    return smooth + 0.1 * torch.randn(count, 10, 14, generator=random)


def blocks(logits: Tensor, size: int = 7) -> list[ClassLogits]:
    parts = torch.arange(len(logits)).split(size)
    return [ClassLogits(part, logits[part]) for part in parts]


def decoded(logits: Tensor, background: float | None = None, resize_scores: bool = False) -> Decoded:
    return collect(blocks(logits), len(logits), LabelMap(SIZE, background, resize_scores))


@pytest.mark.parametrize("background", [None, 0.8])
@pytest.mark.parametrize("resize_scores", [False, True])
def test_blocks_give_the_labels_of_all_at_once(few: None, background: float | None, resize_scores: bool) -> None:
    logits = some_logits()
    found = decoded(logits, background, resize_scores)
    assert found.kept is not None
    assert np.array_equal(found.labels(), label_map(logits, SIZE, background, resize_scores))
    assert (found.labels() == -1).any() == (background is not None)
    best, leaders = logits.max(dim=0)
    assert torch.equal(found.best, best)
    assert torch.equal(found.leaders, leaders)


def test_blocks_in_any_order_give_the_same_labels(few: None) -> None:
    logits = some_logits()
    found = collect(reversed(blocks(logits)), len(logits), LabelMap(SIZE))
    assert np.array_equal(found.labels(), label_map(logits, SIZE))


def test_the_classes_that_lead_at_most_positions_are_kept(few: None) -> None:
    logits = some_logits()
    found = decoded(logits)
    assert found.kept is not None
    assert len(found.kept) == 8
    assert found.kept.tolist() == sorted(found.kept.tolist())
    assert torch.equal(found.logits, logits[found.kept])
    counts = torch.bincount(logits.argmax(dim=0).flatten(), minlength=40)
    assert len(counts.nonzero()) > 8
    assert counts[found.kept].min() >= counts[[k for k in range(40) if k not in found.kept.tolist()]].max()


def test_classes_in_no_block_are_undecoded() -> None:
    logits = some_logits()
    whole = all_logits(blocks(logits)[:2], 40)
    assert torch.equal(whole[:14], logits[:14])
    assert (whole[14:] == UNDECODED).all()


def test_a_result_of_very_many_classes_has_the_certainties_of_all_logits(few: None) -> None:
    logits = some_logits()
    names = tuple(f"class {number}" for number in range(40))
    many = Segmentation.of(decoded(logits), names)
    labels = label_map(logits, SIZE)
    plain = Segmentation(labels, names, logits.numpy())
    assert np.array_equal(many.labels, labels)
    assert many.kept is not None
    assert many.areas == plain.areas
    assert len(plain.areas) > len(many.kept)
    assert many.confidences == pytest.approx(plain.confidences, abs=1e-5)
    assert many.scores.shape == (8, *SIZE)
    absent = next(name for name in names if names.index(name) not in many.kept)
    present = names[many.kept[3]]
    rows = many.logits_of([absent, present])
    assert (rows[0] == UNDECODED).all()
    assert np.array_equal(rows[1], logits[many.kept[3]].numpy())
    assert np.array_equal(plain.logits_of([absent, present]), logits[[names.index(absent), many.kept[3]]].numpy())


def test_files_say_which_classes_their_logits_are_of(few: None, tmp_path) -> None:
    names = tuple(f"class {number}" for number in range(40))
    many = Segmentation.of(decoded(some_logits()), names)
    (path,) = many.save(tmp_path, formats=("npz",))
    with np.load(path) as saved:
        assert np.array_equal(saved["classes"], many.kept)
        assert saved["logits"].shape == (8, 10, 14)
        assert len(saved["names"]) == 40


@pytest.mark.parametrize("refine", [False, True])
def test_a_photo_is_labelled_alike_with_few_and_very_many_classes(monkeypatch, tmp_path, refine: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=2, logit_scale=10.0)
    model = DPSeg(config)
    torch.nn.init.normal_(model.decoder.head.weight)
    segmenter = Segmenter(model, refinement=RefineConfig(0.0, 0.0, 1), cache=EmbeddingCache(tmp_path))
    prompts: PromptSet = segmenter.prompts([f"thing {number}" for number in range(40)])
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    plain = segmenter(photo, prompts=prompts, refine=refine)
    monkeypatch.setattr(class_logits, "ALL_CLASSES", 10)
    many = segmenter(photo, prompts=prompts, refine=refine)
    assert plain.kept is None
    assert many.kept is not None
    assert np.array_equal(many.labels, plain.labels)
    assert many.prompts == plain.prompts
    assert refine == any("crop" in source for source in many.prompts)


PEAK = """
import sys, torch
from pathlib import Path
from dpseg.config import ModelConfig
from dpseg.model import block_decoder, class_logits
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptEmbeddings
block_decoder.KEPT_BYTES = 2**20
class_logits.ALL_CLASSES, class_logits.KEPT_CLASSES = 64, 16
torch.manual_seed(0)
model = DPSeg(ModelConfig(encoder="tiny", templates=2, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), heads=2)).eval()
count = int(sys.argv[1])
rows = [torch.nn.functional.normalize(torch.randn(count, 1, d), dim=-1) for d in (24, 8, 12, 16)]
there = torch.ones(count, dtype=torch.bool)
prompts = PromptEmbeddings(rows[0].expand(-1, 2, -1), rows[0], tuple(rows[1:]), there, there)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
with torch.inference_mode():
    pyramid = model.encode(torch.rand(1, 3, 192, 192))
    found = model.decode_photo(pyramid, prompts, (300, 400))
    found.labels()
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def peak(count: int) -> int:
    """Peak memory in bytes of a process that decodes so many classes."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(count)], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_number_of_classes() -> None:
    # All logits of 1,000 classes take 9 MB here, and all inputs of the last stage 18 MB.
    assert peak(1000) - peak(100) < 6e6
