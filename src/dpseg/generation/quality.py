"""Which painted pictures are of no use: blank ones, those that show something else, and near-duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dpseg.cache import EmbeddingCache
from dpseg.images import load_image
from dpseg.model.encoders import Encoder
from dpseg.model.prompt_encoding import crop_rows, text_prompts
from dpseg.prompts.text import ClassName, templates
from dpseg.prompts.visual import Reference

NSFW, BLANK, LOW_AGREEMENT, DUPLICATE = "nsfw", "blank", "low agreement", "near-duplicate"
"""Why a picture is rejected."""

MIN_DEVIATION = 2.0
"""Grey values of a picture, 0 to 255, deviate by so much, or it is blank: a decoder that overflows paints it black."""

NEAR_BITS = 4
"""Pictures of a class whose hashes differ in so many of 64 bits, or fewer, are near-duplicates."""

OPAQUE, FAINT = 255, 8
"""Alpha: of a pixel that hides all; below FAINT a pixel counts as empty, for generated cut-outs have noise there."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is kept.

    Attributes:
        image: RGB; RGBA where the generator paints cut-outs.
        masked: parts of it are empty and others are not, so that its alpha channel is a mask.
    """

    image: Image.Image
    masked: bool

    def png(self) -> bytes:
        """Returns the picture as a PNG file."""
        buffer = BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()

    def reference(self) -> Reference:
        """Returns the picture as a visual prompt, with its alpha channel as the mask where it has one."""
        if not self.masked:
            return Reference(self.image)
        return Reference(self.image, mask=np.asarray(self.image.getchannel("A")) > 0)


def tidy(image: Image.Image) -> Picture:
    """Takes what a pipeline painted: pixels that are all but empty become empty, an alpha channel of no use goes."""
    if image.mode != "RGBA":
        return Picture(image.convert("RGB"), masked=False)
    channels = np.array(image)
    alpha = channels[..., 3]
    alpha[alpha < FAINT] = 0
    if alpha.min() == OPAQUE or alpha.max() == 0:
        return Picture(load_image(channels), masked=False)
    return Picture(Image.fromarray(channels), masked=bool(alpha.min() == 0))


def difference_hash(image: Image.Image) -> int:
    """Returns 64 bits: of a grey picture of 9 x 8 pixels, whether each is brighter than its neighbour to the right."""
    small = load_image(image).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(small).astype(np.int16)
    return int("".join("1" if brighter else "0" for brighter in (values[:, :-1] > values[:, 1:]).flat), 2)


def is_blank(image: Image.Image) -> bool:
    """Tells whether a picture shows nothing: on white its grey values are nearly all the same."""
    return float(np.asarray(load_image(image).convert("L")).std()) < MIN_DEVIATION


def fault(picture: Picture, agreement: float, kept: Iterable[int], min_agreement: float | None) -> str | None:
    """Returns why a picture is rejected; None: it is good.

    Args:
        picture: the picture.
        agreement: as `Judge.agreements`.
        kept: hashes of the class's pictures that are kept already.
        min_agreement: lower ones are rejected, in [-1, 1]; None: none for that.
    """
    if is_blank(picture.image):
        return BLANK
    if min_agreement is not None and not agreement >= min_agreement:
        return LOW_AGREEMENT
    mine = difference_hash(picture.image)
    return DUPLICATE if any((mine ^ other).bit_count() <= NEAR_BITS for other in kept) else None


@dataclass(frozen=True, eq=False)
class Judge:
    """Says how well a picture agrees with its class, in the joint space of a model.

    Attributes:
        encoder: of the model.
        text: by class, the average of T over the model's templates: (D,), unit vectors.
    """

    encoder: Encoder
    text: dict[str, Tensor]

    @classmethod
    def of(cls, encoder: Encoder, template_count: int, classes: Sequence[ClassName], cache: EmbeddingCache) -> Judge:
        """Encodes the classes.

        Args:
            encoder: of the model.
            template_count: M of the model, 1 to 80.
            classes: K classes.
            cache: where features of texts are kept.
        """
        means = F.normalize(text_prompts(encoder, classes, templates(template_count), cache).embeddings.mean(1), dim=-1)
        return cls(encoder, {entry.name: row for entry, row in zip(classes, means, strict=True)})

    @torch.inference_mode()
    def agreements(self, names: Sequence[str], pictures: Sequence[Picture]) -> list[float]:
        """Returns the cosine of each picture's V with its class's T, in [-1, 1].

        Args:
            names: the classes of N pictures.
            pictures: N pictures.
        """
        if not pictures:
            return []
        crops = (picture.reference().crop(self.encoder.crop_size) for picture in pictures)
        visual, _ = crop_rows(self.encoder, crops)
        return [float(value) for value in (visual * torch.stack([self.text[name] for name in names])).sum(-1)]
