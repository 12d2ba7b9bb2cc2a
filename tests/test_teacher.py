"""Pseudo-labels, by a random tiny model whose answers are compared with those of `Segmenter`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpseg.config import DataSource, ModelConfig, Teacher, TrainConfig
from dpseg.errors import ConfigError
from dpseg.model.dpseg import DPSeg
from dpseg.segmenter import Segmenter
from dpseg.training.corpus import IGNORE, Corpus, load_corpus
from dpseg.training.teacher import NOT_CERTAIN, PseudoLabels
from miniature import write_set

NAMES = ("red square", "blue disc", "green stripe")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Two sets of the same kind; in the second, only the disc is labelled, and a teacher names the rest."""
    torch.manual_seed(0)
    model = ModelConfig(
        encoder="tiny",
        image_size=64,
        templates=1,
        widths=(8, 8, 8, 8),
        image_widths=(4, 4, 4),
        heads=2,
        logit_scale=20.0,
    )
    DPSeg(model).save_pretrained(tmp_path / "teacher")
    write_set(tmp_path / "data" / "shapes")
    poor = write_set(tmp_path / "data" / "poor", photos=2, seed=1)
    (poor / "classes.txt").write_text("background\nblue disc")
    for path in (poor / "masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray((mask == 2).astype(np.uint8)).save(path)
    teacher = Teacher(str(tmp_path / "teacher"), "shapes", confidence=0.0)
    return TrainConfig(
        model=model,
        data=(DataSource("shapes"), DataSource("poor", teacher=teacher)),
        data_root=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
    )


def poor_photos(corpus: Corpus) -> list[torch.Tensor]:
    return [photo.labels for photo in corpus.photos if photo.source == 1]


def test_it_names_what_has_no_label_but_never_the_sets_own_names(config: TrainConfig) -> None:
    corpus = load_corpus(config)
    assert corpus.names == NAMES
    assert corpus.vocabularies == ((0, 1, 2), (1, 0, 2))
    plain = load_corpus(replace(config, data=(config.data[0], DataSource("poor"))))
    teacher = config.data[1].teacher
    assert teacher is not None
    segmenter = Segmenter.from_pretrained(teacher.model)
    photos = [photo for photo in corpus.photos if photo.source == 1]
    for photo, before in zip(photos, poor_photos(plain), strict=True):
        image = photo.image.permute(1, 2, 0).numpy()
        logits = segmenter(image, text=list(NAMES), refine=False).logits
        answers = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], before.shape, mode="bilinear")[0]
        expected = answers.argmax(dim=0).where(answers.argmax(dim=0) != 1, IGNORE)
        labelled = before >= 0
        assert labelled.any()
        assert (photo.labels[labelled] == 1).all()
        assert torch.equal(photo.labels[~labelled].long(), expected[~labelled])


def test_it_is_silent_where_it_is_not_certain(config: TrainConfig) -> None:
    teacher = replace(config.data[1].teacher, confidence=1.1)  # type: ignore[type-var]
    corpus = load_corpus(replace(config, data=(config.data[0], replace(config.data[1], teacher=teacher))))
    assert {value for labels in poor_photos(corpus) for value in labels.unique().tolist()} == {IGNORE, 1}


def test_labels_are_made_once_and_damaged_ones_again(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = poor_photos(load_corpus(config))
    files = sorted((Path(config.out) / "pseudo").rglob("*.png"))
    assert len(files) == 2
    files[0].write_bytes(b"no picture")
    made = []
    predict = PseudoLabels._predict

    def counted(self: PseudoLabels, image: torch.Tensor) -> np.ndarray:
        made.append(image)
        return predict(self, image)

    monkeypatch.setattr(PseudoLabels, "_predict", counted)
    second = poor_photos(load_corpus(config))
    assert len(made) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(NAMES) < NOT_CERTAIN


def test_a_teacher_of_names_that_are_not_in_the_recipe_is_an_error(config: TrainConfig) -> None:
    teacher = replace(config.data[1].teacher, names_of="shape")  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        load_corpus(replace(config, data=(config.data[0], replace(config.data[1], teacher=teacher))))
