"""Classes that look alike: directions that tell them apart, what words are worth, and the photo as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.cli import run
from dpseg.errors import ConfigError
from dpseg.matching import MATCHINGS, Matching, matching_of
from dpseg.model.cost_volume import dual_prompt
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.matching import contrast_rows, with_whole, words_worth
from dpseg.model.prompt_encoding import name_features, text_prompts
from dpseg.model.prompting import References, build_prompts
from dpseg.model.tiny import TinyEncoder
from dpseg.prompts.bank import Bank
from dpseg.prompts.prompt_set import PromptEmbeddings
from dpseg.prompts.text import parse_classes, templates
from dpseg.prompts.visual import Reference
from support.labelled_set import write_set
from support.pictures import plain
from support.tiny import save_tiny, tiny_config, tiny_segmenter

CONFIG = tiny_config(templates=2)
RED, GREEN, BLUE = (plain(colour) for colour in ((255, 0, 0), (0, 128, 0), (0, 0, 255)))


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


def test_what_all_classes_have_and_what_is_beside_the_thing_say_nothing() -> None:
    classes = [[picture((1.0, 0.2, 0.0))], [picture((1.0, 0.0, 0.3))], [picture((1.0, 0.1, 0.1))]]
    units = [torch.nn.functional.normalize(crop[:, 0, 0], dim=0) for ((crop, _),) in classes]
    centre = torch.stack(units).mean(dim=0)
    torch.testing.assert_close(contrast(*classes) @ centre, torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(contrast([picture((1.0, 0.2, 0.0))]), torch.zeros(1, 3))
    one, other = picture((1.0, 0.0, 0.2)), picture((1.0, 0.3, 0.0))
    crop, mask = picture((1.0, 0.0, 0.2), (0.0, 1.0, 0.0))
    mask[:, 1] = 0
    for beside in (mask, mask * 0.1):  # of a thing that covers no position by half, the best covered count
        torch.testing.assert_close(contrast([(crop, beside)], [other]), contrast([one], [other]))


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
    mirrored = whole.mirrored[0].dense  # unit vectors, whatever E's length
    torch.testing.assert_close(mirrored, expected, atol=1e-4, rtol=0)
    assert whole.stages[0] is row


def built(
    encoder: TinyEncoder, matching: Matching | None, references: References | None, bank: Bank | None = None
) -> PromptEmbeddings:
    """Prompts of three words, of which the first is "red", and of references."""
    words = ["crimson, red" if isinstance(encoder, Forgetful) else "red", "green", "blue"]
    return build_prompts(encoder, words, references, 2, EmbeddingCache(), bank, matching).embeddings


def test_only_what_is_asked_for_changes() -> None:
    encoder, references = TinyEncoder(CONFIG), {"red": [RED], "green": [GREEN]}
    plain, contrasted = built(encoder, None, references), built(encoder, Matching(contrast=2.0), references)
    assert torch.equal(plain.visual, built(encoder, Matching(), references).visual)
    crops = [[Reference(picture).crop(encoder.crop_size)] for picture in (RED, GREEN)]
    length = (plain.visual[:2] + 2.0 * contrast_rows(encoder, crops)[:, None]).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(contrasted.text[:2], plain.text[:2] / length)  # contrast joins the average of T and V
    assert torch.equal(plain.text[2], contrasted.text[2])
    assert torch.equal(plain.stages[0], contrasted.stages[0])
    torch.testing.assert_close(torch.linalg.vector_norm(contrasted.visual[:2], dim=-1), torch.ones(2, 1))
    assert not contrasted.visual[2].any()
    assert float(plain.visual[0] @ plain.visual[1].T) > float(contrasted.visual[0] @ contrasted.visual[1].T)
    weighed = built(encoder, Matching(weigh_words=True), references)
    own = words_worth(plain.text, [0, 1], plain.visual[:2, 0])
    torch.testing.assert_close(weighed.text[:2], own * plain.text[:2])
    assert own < 1
    assert torch.equal(weighed.text[2], plain.text[2])  # it has nothing else
    assert torch.equal(weighed.visual, plain.visual)
    alone = build_prompts(encoder, None, references, 2, EmbeddingCache(), None, MATCHINGS["alike"]).embeddings
    assert not alone.text.any()


def test_words_outweigh_few_pictures() -> None:
    encoder, references = TinyEncoder(CONFIG), {"green": [GREEN, BLUE, RED, RED], "red": [RED]}
    plain, weighed = (built(encoder, Matching(prior=prior), references) for prior in (0.0, 2.0))
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


def test_words_outweigh_pictures_as_far_as_training_knew_them() -> None:
    encoder, cache = Forgetful(CONFIG), EmbeddingCache()
    classes = parse_classes(["crimson, red", "green", "blue"])
    known = text_prompts(encoder, classes, templates(2), cache).familiarity
    torch.testing.assert_close(known, torch.tensor([0.5, 0.0, 0.0]))  # by the best known of its names
    weights = torch.tensor([2.0, 1.0, 1.0])[:, None, None]  # (1 + 2 * 0.5) / 1 picture
    shown = encoder.visual_features(torch.rand(3, 3, 32, 32))
    text = name_features(encoder, classes, cache)
    bank = Bank(("crimson", "green", "blue"), text, shown.dense, shown.stages, encoder.fingerprint)
    pictures = {"red": [RED], "green": [GREEN]}
    for references, given in ((pictures, None), (None, bank)):  # a bank counts as one picture
        plain, weighed = (built(encoder, Matching(prior=prior), references, given) for prior in (0.0, 2.0))
        assert weighed.has_visual.tolist() == [True, True, given is not None]
        torch.testing.assert_close(weighed.text, plain.text * weights)


def test_the_photo_as_a_whole_reaches_the_labels() -> None:
    segmenter = tiny_segmenter(templates=2)
    prompts = segmenter.prompts(None, {"red": RED, "green": GREEN})
    photo = Image.new("RGB", (96, 64), "red")
    photo.paste("green", (64, 0, 96, 64))
    assert set(segmenter(photo, prompts=prompts).areas) == {"red", "green"}
    segmenter.model.config = replace(segmenter.model.config, matching=Matching(whole=50.0))
    assert len(segmenter(photo, prompts=prompts).areas) == 1


def test_a_models_config_may_say_it(tmp_path: Path) -> None:
    save_tiny(tmp_path, matching=MATCHINGS["alike"])
    assert DPSeg.from_pretrained(tmp_path).config.matching == MATCHINGS["alike"]
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("matching")["contrast"] == 3.0
    (tmp_path / "config.json").write_text(json.dumps(content))  # as models were saved before there was a choice
    assert DPSeg.from_pretrained(tmp_path).config.matching == Matching()


def test_evaluate_takes_it(model: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    data, out = write_set(tmp_path / "shapes", photos=4, splits={"val": [0]}), tmp_path / "report.json"
    command = ["evaluate", str(data), "--model", model, "--prompts", "pictures", "--refine", "off"]
    assert run([*command, "--match", "alike", "--out", str(out)]) == 0
    alike = {"contrast": 3.0, "turned": True, "whole": 4.0, "weigh_words": True, "prior": 0.0, "logit_adjustment": 0.0}
    assert json.loads(out.read_text())["model"]["matching"] == alike
    assert "match 'alke' is unknown; did you mean 'alike'" in refused(*command, "--match", "alke")


def test_what_is_out_of_range_is_refused() -> None:
    assert matching_of(" Plain ") == Matching()
    for field, value in (("contrast", -1.0), ("whole", float("nan")), ("prior", -2.0), ("logit_adjustment", -0.1)):
        with pytest.raises(ConfigError, match=rf"matching\.{field} {value} is out of range; give a number from 0 on"):
            Matching(**{field: value})  # type: ignore[arg-type]
