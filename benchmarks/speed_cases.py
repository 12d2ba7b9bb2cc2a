"""What `speed.py` measures: models, photos and prompts, the same each time, without any text to encode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sed_decoder import SEDDecoder
from torch import Tensor

from dpseg.config import ModelConfig, RefineConfig
from dpseg.model.class_logits import Decoded
from dpseg.model.dpseg import DPSeg
from dpseg.photos import Encoded, load_photo
from dpseg.plain_values import read_yaml
from dpseg.pretrained import load_pretrained
from dpseg.prompts.prompt_set import PromptEmbeddings, PromptSet
from dpseg.recipe import TrainConfig
from dpseg.refine import Region, refine
from dpseg.rejection import Rejection

ROOT = Path(__file__).parent.parent
ModelName = Literal["base", "lite"]

_QUICK = ModelConfig(
    encoder="tiny", image_size=64, templates=20, widths=(16, 12, 8, 8), image_widths=(4, 4, 4), heads=2
)
_CHUNK = 512  # classes whose prompts are made at a time


@dataclass(frozen=True)
class Sizes:
    """Numbers of classes, and what early rejection is allowed.

    Attributes:
        usual: classes of a benchmark such as A-150.
        many: of one such as A-847.
        rejection: for the rows with early rejection.
        runs: of which the shortest counts.
        quick: small models on small photos, for a test of the benchmark itself.
    """

    usual: int = 150
    many: int = 847
    rejection: Rejection = field(default_factory=lambda: Rejection(48, 8))
    runs: int = 3
    quick: bool = False


QUICK = Sizes(10, 24, Rejection(4, 2), 1, True)


class Case:
    """One model and one photo.

    Attributes:
        model: base with random weights, as configs/base.yaml has it; or dpseg-lite as it ships.
        photo: on its way to the encoder.
        quick: the model is tiny.
    """

    def __init__(self, name: ModelName, quick: bool = False) -> None:
        """Builds the model.

        Args:
            name: which.
            quick: a tiny model in its place.
        """
        torch.manual_seed(0)
        self.quick = quick
        size = (768, 768) if name == "base" else (640, 480)
        if quick:
            size = (64, 64)
            lite = replace(_QUICK, templates=1, logit_scale=10.0, keep_aspect=True, decode_classes=6)
            self.model = DPSeg(replace(_QUICK, auxiliary_heads=True) if name == "base" else lite).eval()
        elif name == "base":
            config = TrainConfig.from_dict(read_yaml(ROOT / "configs" / "base.yaml")).model
            self.model = DPSeg(replace(config, weights="random")).eval()
        else:
            self.model = load_pretrained("dpseg-lite")[0].eval()
        self.config = self.model.config
        with Image.open(ROOT / "examples" / "coffee.jpg") as image:
            picture = image.convert("RGB").resize(size)
        self.photo = load_photo(picture, self.config, self.model.encoder.strides[-1], None)

    def prompts(self, count: int) -> PromptSet:
        """Returns prompts of so many classes, text and one picture each: random unit vectors."""
        random = torch.Generator().manual_seed(count)

        def rows(size: int, each: int = 1) -> Tensor:
            vectors = torch.empty(count, each, size)
            for part in vectors.split(_CHUNK):  # in place, so that nothing larger than the result is ever there
                part.normal_(generator=random)
                part /= part.norm(dim=-1, keepdim=True)
            return vectors

        s2, s3, s4 = self.model.encoder.stage_dims
        size, yes = self.model.encoder.embed_dim, torch.ones(count, dtype=torch.bool)
        embeddings = PromptEmbeddings(
            rows(size, self.config.templates), rows(size), (rows(s2), rows(s3), rows(s4)), yes, yes.clone()
        )
        return PromptSet(tuple(f"class {number}" for number in range(count)), embeddings, "")

    def sed_decoder(self) -> SEDDecoder:
        """Returns SED's decoder with random weights, for the same image features and templates."""
        torch.manual_seed(0)
        return SEDDecoder(self.model.encoder.stage_dims, self.config.templates).eval()

    @contextlib.contextmanager
    def rejecting(self, rejection: Rejection | None) -> Iterator[None]:
        """Changes what the model gives up early; None: as it comes."""
        if rejection is not None:
            self.model.config = replace(self.config, rejection=rejection, decode_classes=None)
        try:
            yield
        finally:
            self.model.config = self.config

    def encode(self) -> Encoded:
        """Encodes the photo."""
        return Encoded((self.photo,), self.model.encode(self.photo.tensor[None]))

    def look(
        self, encoded: Encoded, prompts: PromptSet, before: Decoded | None = None
    ) -> tuple[Decoded, NDArray[np.int32]]:
        """Decodes the photo to what is kept of its logits, and its labels."""
        image = self.photo.image
        found = self.model.decode_photo(encoded.pyramid, prompts.embeddings, (image.height, image.width), before=before)
        return found, found.labels()

    def look_again(self, encoded: Encoded, prompts: PromptSet, before: Decoded, crops: int) -> None:
        """Runs Inference II, as if so many regions had been found: random weights find none by themselves."""
        regions = [_region(before, number) for number in range(crops)]
        (refined,) = refine(self.model, encoded, prompts, [regions], RefineConfig())
        self.look(encoded, refined, before)


def _region(found: Decoded, number: int) -> Region:
    """Returns a square of the photo as a region of the class that leads at most positions, or the next of these."""
    classes = found.leaders.flatten().bincount().argsort(descending=True)
    height, width = found.leaders.shape
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return Region(int(classes[min(number, len(classes) - 1)]), mask, 0.25, 1.0)


def prompt_bytes(prompts: PromptSet) -> int:
    """Returns the size of the prompts themselves, which grows with K whatever the decoder does."""
    tensors = prompts.embeddings
    return sum(tensor.nbytes for tensor in (tensors.text, tensors.visual, *tensors.stages))
