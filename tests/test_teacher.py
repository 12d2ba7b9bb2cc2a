"""Pseudo-labels, by a random tiny model whose answers are compared with those of `Segmenter`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.errors import ConfigError, DataError
from dpseg.model.dpseg import DPSeg
from dpseg.prompts.prompt_set import PromptSet
from dpseg.recipe import DataSource, Teacher, TrainConfig
from dpseg.segmenter import Segmenter
from dpseg.training import teacher as teaching
from dpseg.training.corpus import IGNORE, NONE, Corpus, LabelledPhoto, load_corpus
from dpseg.training.loop import prepare
from dpseg.training.teacher import NOT_CERTAIN, PseudoLabels
from support.labelled_set import write_set
from support.tiny_recipe import tiny_recipe

NAMES = ("red square", "blue disc", "green stripe")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Two sets of the same kind; in the second, only the disc is labelled, and a teacher names the rest."""
    poor = write_set(tmp_path / "data" / "poor", photos=2, seed=1)
    (poor / "classes.txt").write_text("background\nblue disc")
    for path in (poor / "masks").iterdir():
        Image.fromarray((np.array(Image.open(path)) == 2).astype(np.uint8)).save(path)
    teacher = Teacher(str(tmp_path / "teacher"), "shapes", confidence=0.0)
    data = (DataSource("shapes"), DataSource("poor", teacher=teacher))
    config = tiny_recipe(tmp_path, {"widths": (8, 8, 8, 8), "logit_scale": 20.0}, data=data, photo_size=384)
    torch.manual_seed(0)
    DPSeg(config.model).save_pretrained(tmp_path / "teacher")
    return config


@pytest.fixture
def pictures(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The first set, and pictures of a name of it and of two others."""
    random = np.random.default_rng(0)
    for name in ("blue disc", "pink_hat", "zigzag"):
        (tmp_path / "data" / "pictures" / name).mkdir(parents=True)
        pixels = random.integers(0, 255, (80, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "pictures" / name / "one.png")
    source = with_teacher(config, 1, locate=True, confidence=0.3).data[1]
    return replace(config, data=(replace(source, name="pictures"), config.data[0]))


def with_teacher(config: TrainConfig, place: int, **changes: Any) -> TrainConfig:
    """Returns a recipe with another teacher of the set at that place."""
    data = list(config.data)
    data[place] = replace(data[place], teacher=replace(data[place].teacher, **changes))  # type: ignore[type-var]
    return replace(config, data=tuple(data))


def photos_of(corpus: Corpus, source: int) -> list[LabelledPhoto]:
    return [photo for photo in corpus.photos if photo.source == source]


def logits_of(config: TrainConfig, photo: LabelledPhoto, names: list[str]) -> torch.Tensor:
    """What the teacher itself says of a photo, pixel by pixel."""
    segmenter = Segmenter.from_pretrained(Path(config.data_root).parent / "teacher")
    logits = segmenter(photo.image.permute(1, 2, 0).numpy(), text=names, refine=False).logits
    return torch.nn.functional.interpolate(torch.from_numpy(logits)[None], photo.labels.shape, mode="bilinear")[0]


def test_it_names_what_has_no_label_but_never_the_sets_own_names(config: TrainConfig) -> None:
    corpus = load_corpus(config)
    assert corpus.names == NAMES
    assert corpus.vocabularies == ((0, 1, 2), (1, 0, 2))
    plain = load_corpus(replace(config, data=(config.data[0], DataSource("poor"))))
    for photo, before in zip(photos_of(corpus, 1), photos_of(plain, 1), strict=True):
        answers = logits_of(config, photo, list(NAMES)).argmax(dim=0)
        labelled = before.labels >= 0
        assert labelled.any()
        assert (photo.labels[labelled] == 1).all()
        assert torch.equal(photo.labels[~labelled].long(), answers.where(answers != 1, NONE)[~labelled])


def test_it_is_silent_where_it_is_not_certain(config: TrainConfig) -> None:
    corpus = load_corpus(with_teacher(config, 1, confidence=1.1))
    assert {value for photo in photos_of(corpus, 1) for value in photo.labels.unique().tolist()} == {NONE, 1}
    assert corpus.labelled == ((0, 1, 2), (1,))  # so that of the teacher's names, none is ruled out there


def test_labels_are_made_once_and_damaged_ones_again(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = photos_of(load_corpus(config), 1)
    files = sorted((Path(config.out) / "pseudo").rglob("*.png"))
    assert len(files) == 2
    files[0].write_bytes(b"no picture")
    made = []
    predict = PseudoLabels._logits

    def counted(self: PseudoLabels, image: torch.Tensor, prompts: PromptSet) -> torch.Tensor:
        made.append(image)
        return predict(self, image, prompts)

    monkeypatch.setattr(PseudoLabels, "_logits", counted)
    second = photos_of(load_corpus(config), 1)
    assert len(made) == 1
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True))
    assert len(NAMES) < NOT_CERTAIN


def test_mistakes_in_a_recipe_are_told(config: TrainConfig, pictures: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        load_corpus(with_teacher(config, 1, names_of="shape"))
    without = replace(pictures.data[0], name="shapes/masks")
    with pytest.raises(DataError, match="lay them out as NAME/PICTURE"):
        load_corpus(replace(pictures, data=(without, pictures.data[1])))


def test_it_finds_what_a_picture_without_a_mask_shows(pictures: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "MAX_RAISE", 50.0)
    corpus = load_corpus(pictures)
    assert corpus.names == (*NAMES, "pink hat", "zigzag")  # those without masks last
    assert corpus.vocabularies == ((), (0, 1, 2))
    assert corpus.known == 3
    for photo, shown in zip(photos_of(corpus, 0), (1, 3, 4), strict=True):
        others = [name for name in NAMES if name != corpus.names[shown]]
        logits = logits_of(pictures, photo, [*others, corpus.names[shown]])
        before = logits.argmax(dim=0)
        logits[-1] += max(0, 4 - torch.quantile(logits[-1] - logits[:-1].logsumexp(dim=0), 0.97).item())
        shares, answer = logits.softmax(dim=0).max(dim=0)
        found = (answer == len(others)) & (shares >= 0.3)
        assert found.float().mean() >= 0.02
        assert ((photo.labels == shown) == found).all()
        same = {NAMES.index(name) for row, name in enumerate(others) if (before[found] == row).float().mean() > 0.1}
        assert set(photo.unsure) == same
        assert not same & set(photo.labels.unique().tolist())


def test_what_it_does_not_see_stays_without_a_label(pictures: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "MAX_RAISE", -10.0)
    assert all((photo.labels == IGNORE).all() for photo in photos_of(load_corpus(pictures), 0))


def test_pictures_of_held_out_names_are_left_out(pictures: TrainConfig) -> None:
    corpus = load_corpus(replace(pictures, hold_out=("blue disc", "zigzag")))
    assert corpus.names == ("red square", "green stripe", "pink hat")
    assert [photo.key for photo in photos_of(corpus, 0)] == ["pictures/pink_hat/one"]


def test_training_takes_a_step_with_pictures(pictures: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "MAX_RAISE", 50.0)
    setup = prepare(replace(pictures, photo_size=64, batch_size=6, retention=0.5), lambda line: None)
    batch = setup.sampler[0]
    assert {0, 1} <= set(batch.sources)
    parts = setup.step(batch, 0)
    assert all(torch.isfinite(part.total) for part in parts.values())
    torch.stack([part.mean for part in parts.values()]).sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in setup.model.decoder.parameters())
