"""Classes that look alike: directions that tell them apart, what words are worth, and the photo as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.config import ModelConfig
from dpseg.errors import ConfigError
from dpseg.matching import MATCHINGS, Matching, matching_of
from dpseg.model.cost_volume import dual_prompt
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.matching import contrast_rows, with_whole, words_worth
from dpseg.model.prompt_encoding import name_features, text_prompts
from dpseg.model.prompting import build_prompts
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.prompts.text import parse_classes, templates
from dpseg.prompts.visual import Reference
from dpseg.segmenter import Segmenter
from support.labelled_set import write_set

CONFIG = ModelConfig(encoder="tiny", image_size=64, keep_aspect=True, templates=2, logit_scale=10.0, tune_encoder=False)
RED, GREEN, BLUE = (Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue"))


class PixelEncoder(TinyEncoder):
    """E of a picture is the picture itself: three dimensions at every pixel."""

    def pyramid(self, images: Tensor) -> Pyramid:
        return Pyramid((images, images, images), images)


def picture(*columns: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """A picture of so many columns, and a mask of all of it."""
    crop = torch.tensor(columns).T[:, None, :].expand(3, len(columns), -1).contiguous()
    return crop, torch.ones(crop.shape[1:])


def contrast(*classes: list[tuple[Tensor, Tensor]]) -> Tensor:
    return contrast_rows(PixelEncoder(CONFIG), classes)


def test_what_varies_within_a_thing_counts_less_than_what_tells_it_apart() -> None:
    # The classes differ by as much in the second dimension as in the third, and the second varies within each.
    first = [picture((1.0, 0.0, 0.1), (1.0, 0.4, 0.1)), picture((1.0, 0.1, 0.1), (1.0, 0.5, 0.1))]
    second = [picture((1.0, 0.1, 0.2), (1.0, 0.5, 0.2)), picture((1.0, 0.2, 0.2), (1.0, 0.6, 0.2))]
    rows = contrast(first, second)
    torch.testing.assert_close(torch.linalg.vector_norm(rows, dim=-1), torch.ones(2))
    assert abs(float(rows[0, 2])) > 3 * abs(float(rows[0, 1]))
    assert float(rows[0, 2]) < 0 < float(rows[1, 2])


def test_what_all_classes_have_says_nothing() -> None:
    classes = [[picture((1.0, 0.2, 0.0))], [picture((1.0, 0.0, 0.3))], [picture((1.0, 0.1, 0.1))]]
    units = [torch.nn.functional.normalize(crop[:, 0, 0], dim=0) for ((crop, _),) in classes]
    centre = torch.stack(units).mean(dim=0)
    torch.testing.assert_close(contrast(*classes) @ centre, torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(contrast([picture((1.0, 0.2, 0.0))]), torch.zeros(1, 3))


def test_positions_beside_the_thing_do_not_count() -> None:
    one, other = picture((1.0, 0.0, 0.2)), picture((1.0, 0.3, 0.0))
    crop, mask = picture((1.0, 0.0, 0.2), (0.0, 1.0, 0.0))
    mask[:, 1] = 0
    torch.testing.assert_close(contrast([(crop, mask)], [other]), contrast([one], [other]))
    speck = (crop, mask * 0.1)  # of a thing that covers no position by half, the best covered count
    torch.testing.assert_close(contrast([speck], [other]), contrast([one], [other]))


class CornerEncoder(TinyEncoder):
    """E of a picture is its upper left quarter, so that a turned picture has another E."""

    def pyramid(self, images: Tensor) -> Pyramid:
        corner = images[..., : images.shape[-2] // 2, : images.shape[-1] // 2]
        return Pyramid((corner, corner, corner), corner)


def test_turned_pictures_are_seen_from_all_sides() -> None:
    crop, mask = torch.zeros(3, 4, 4), torch.ones(4, 4)
    crop[0], crop[1, :2, 2:] = 1.0, 0.5  # the upper right quarter has something in it
    other = picture((1.0, 0.0, 0.3), (1.0, 0.0, 0.3), (1.0, 0.0, 0.3), (1.0, 0.0, 0.3))
    encoder = CornerEncoder(CONFIG)
    upright = contrast_rows(encoder, [[(crop, mask)], [other]])
    assert abs(float(upright[0, 1])) < 1e-5  # unturned, nobody sees it
    turned = contrast_rows(encoder, [[(crop, mask)], [other]], turned=True)
    assert float(turned[0, 1]) > 0.1
    again = contrast_rows(encoder, [[(crop.rot90(1, (1, 2)), mask)], [other]], turned=True)
    torch.testing.assert_close(again, turned)  # whichever way round it lies


def test_words_are_worth_what_they_rank_right() -> None:
    names, pictures = torch.eye(4)[:, None], torch.eye(4)
    assert words_worth(names, [0, 1, 2, 3], pictures) == 1.0
    assert words_worth(names, [1, 2, 3, 0], pictures) == 0.0  # worse than chance is nothing, too
    assert words_worth(torch.ones(4, 1, 4), [0, 1, 2, 3], pictures) == 0.0
    assert words_worth(names[:1], [0], pictures[:1]) == 1.0
    nearly = torch.tensor([[0.5, 0.9, 0.1, 0.0]])  # one of three wrong words is nearer
    assert words_worth(names, [0], nearly) == pytest.approx(2 * 2 / 3 - 1)
    several = torch.cat([pictures[:1].repeat(9, 1), nearly.roll(1, 1)])  # classes weigh alike, not pictures
    assert words_worth(names, [0] * 9 + [1], several) == pytest.approx((1 + 1 / 3) / 2)


def embeddings(visual: Tensor) -> PromptEmbeddings:
    rows, some = visual[:, None], torch.zeros(len(visual), 1, 1)
    has = torch.ones(len(visual), dtype=torch.bool)
    return PromptEmbeddings(torch.zeros_like(rows), rows, (some, some, some), ~has, has)


def test_the_whole_is_what_looks_most_like_a_class() -> None:
    thing, part, floor = torch.eye(4)[:3]
    row = torch.stack([thing, part, floor]).T[None, :, None]  # (1, D, 1, 3)
    pyramid = Pyramid((row, row, row), row, (Pyramid((row, row, row), 2 * row),))
    prompts = embeddings(torch.stack([thing, torch.eye(4)[3]]))
    assert with_whole(pyramid, prompts, "average", 0.0) is pyramid
    whole = with_whole(pyramid, prompts, "average", 2.0)
    expected = row + 2 * thing[None, :, None, None]
    torch.testing.assert_close(whole.dense, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        whole.mirrored[0].dense, expected, atol=1e-4, rtol=0
    )  # unit vectors, whatever E's length
    assert whole.stages[0] is row


def test_only_what_is_asked_for_changes(tmp_path: Path) -> None:
    encoder, cache = TinyEncoder(CONFIG), EmbeddingCache(tmp_path)
    words, references = ["red", "green", "blue"], {"red": [RED], "green": [GREEN]}

    def built(matching: Matching | None) -> PromptEmbeddings:
        return build_prompts(encoder, words, references, 2, cache, None, matching).embeddings

    plain, contrasted = built(None), built(Matching(contrast=2.0))
    assert torch.equal(plain.visual, built(Matching()).visual)
    crops = [[Reference(picture).crop(encoder.crop_size)] for picture in (RED, GREEN)]
    length = (plain.visual[:2] + 2.0 * contrast_rows(encoder, crops)[:, None]).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(contrasted.text[:2], plain.text[:2] / length)  # contrast joins the average of T and V
    assert torch.equal(plain.text[2], contrasted.text[2])
    assert torch.equal(plain.stages[0], contrasted.stages[0])
    torch.testing.assert_close(torch.linalg.vector_norm(contrasted.visual[:2], dim=-1), torch.ones(2, 1))
    assert not contrasted.visual[2].any()
    assert float(plain.visual[0] @ plain.visual[1].T) > float(contrasted.visual[0] @ contrasted.visual[1].T)
    weighed = built(Matching(weigh_words=True))
    own = words_worth(plain.text, [0, 1], plain.visual[:2, 0])
    torch.testing.assert_close(weighed.text[:2], own * plain.text[:2])
    assert own < 1
    assert torch.equal(weighed.text[2], plain.text[2])  # it has nothing else
    assert torch.equal(weighed.visual, plain.visual)
    alone = build_prompts(encoder, None, references, 2, cache, None, MATCHINGS["alike"]).embeddings
    assert not alone.text.any()


def test_words_outweigh_few_pictures(tmp_path: Path) -> None:
    encoder, cache = TinyEncoder(CONFIG), EmbeddingCache(tmp_path)
    words, references = ["red", "green", "blue"], {"green": [GREEN, BLUE, RED, RED], "red": [RED]}

    def built(prior: float) -> PromptEmbeddings:
        return build_prompts(encoder, words, references, 2, cache, None, Matching(prior=prior)).embeddings

    plain, weighed = built(0.0), built(2.0)
    shares = torch.tensor([3.0, 1.5, 1.0])  # (1 + 2) / 1 and (4 + 2) / 4 pictures; none
    torch.testing.assert_close(weighed.text, plain.text * shares[:, None, None])
    assert torch.equal(weighed.visual, plain.visual)
    expected = (3.0 * plain.text[0] + plain.visual[0]) / 2
    torch.testing.assert_close(dual_prompt(weighed)[0], expected)
    torch.testing.assert_close(dual_prompt(weighed)[2], plain.text[2])


class Forgetful(TinyEncoder):
    """Knows "red" by half, and no other word."""

    def familiarity(self, features: Tensor) -> Tensor:
        reds = self.text_features([sentence.format("red") for sentence in templates(2)])
        return 0.5 * (torch.cdist(features, reds) < 1e-3).any(dim=-1)


def test_words_outweigh_pictures_as_far_as_training_knew_them(tmp_path: Path) -> None:
    encoder, cache = Forgetful(CONFIG), EmbeddingCache(tmp_path)
    words, references = ["crimson, red", "green", "blue"], {"red": [RED], "green": [GREEN]}
    known = text_prompts(encoder, parse_classes(words), templates(2), cache).familiarity
    torch.testing.assert_close(known, torch.tensor([0.5, 0.0, 0.0]))  # by the best known of its names

    def built(prior: float, bank: Bank | None = None) -> PromptEmbeddings:
        shown = references if bank is None else None
        return build_prompts(encoder, words, shown, 2, cache, bank, Matching(prior=prior)).embeddings

    weights = torch.tensor([2.0, 1.0, 1.0])[:, None, None]  # (1 + 2 * 0.5) / 1 picture
    torch.testing.assert_close(built(2.0).text, built(0.0).text * weights)
    text = name_features(encoder, parse_classes(words), cache)
    shown = encoder.visual_features(torch.rand(3, 3, 32, 32))
    bank = Bank(("crimson", "green", "blue"), text, shown.dense, shown.stages, encoder.fingerprint)
    assert built(2.0, bank).has_visual.all()
    torch.testing.assert_close(built(2.0, bank).text, built(0.0, bank).text * weights)  # a bank counts as one picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("model")
    DPSeg(CONFIG).save_pretrained(place)
    return place


def test_the_photo_as_a_whole_reaches_the_labels(folder: Path) -> None:
    segmenter = Segmenter.from_pretrained(folder, "cpu")
    photo = Image.new("RGB", (96, 64), "red")
    photo.paste("green", (64, 0, 96, 64))
    prompts = segmenter.prompts(None, {"red": RED, "green": GREEN})
    assert set(segmenter(photo, prompts=prompts).areas) == {"red", "green"}
    segmenter.model.config = replace(segmenter.model.config, matching=Matching(whole=50.0))
    assert len(segmenter(photo, prompts=prompts).areas) == 1


def test_a_models_config_may_say_it(tmp_path: Path) -> None:
    DPSeg(replace(CONFIG, matching=MATCHINGS["alike"])).save_pretrained(tmp_path)
    assert DPSeg.from_pretrained(tmp_path).config.matching == MATCHINGS["alike"]
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("matching")["contrast"] == 3.0
    (tmp_path / "config.json").write_text(json.dumps(content))  # as models were saved before there was a choice
    assert DPSeg.from_pretrained(tmp_path).config.matching == Matching()


def test_evaluate_takes_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_set(tmp_path / "shapes", photos=4), tmp_path / "report.json"
    (data / "val.txt").write_text("photo0\n")
    command = ["evaluate", str(data), "--model", str(folder), "--prompts", "pictures", "--refine", "off"]
    assert run([*command, "--match", "alike", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["model"]["matching"] == {
        "contrast": 3.0,
        "turned": True,
        "whole": 4.0,
        "weigh_words": True,
        "prior": 0.0,
        "logit_adjustment": 0.0,
    }
    assert run([*command, "--match", "alke"]) == 2
    assert "match 'alke' is unknown; did you mean 'alike'" in capsys.readouterr().err


def test_what_is_out_of_range_is_refused() -> None:
    assert matching_of(" Plain ") == Matching()
    for field, value in (("contrast", -1.0), ("whole", float("nan")), ("prior", -2.0), ("logit_adjustment", -0.1)):
        with pytest.raises(ConfigError, match=rf"matching\.{field} {value} is out of range; give a number from 0 on"):
            Matching(**{field: value})
