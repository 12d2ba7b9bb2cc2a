"""Segmenter: photos, words and reference pictures in, segmentations out.

>>> segmenter = Segmenter.from_pretrained("dpseg-lite")
>>> result = segmenter("desk.jpg", text=["mug", "laptop", "wall"], references={"mug": ["my_mug.jpg"]})
>>> result.areas
{"wall": 0.52, "laptop": 0.21, "mug": 0.04}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from dpseg.cache import EmbeddingCache
from dpseg.config import RefineConfig
from dpseg.errors import ConfigError, DPSegError, PromptError
from dpseg.images import ImageLike
from dpseg.memory import release_free_memory
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.model.label_map import label_map
from dpseg.model.preprocess import MAX_SIZE, MIN_SIZE
from dpseg.model.prompt_encoding import encoder_device, prompt_fingerprint
from dpseg.model.prompting import References, build_prompts
from dpseg.photos import Photo, load_photo, photo_batches
from dpseg.pretrained import load_pretrained, pick_device
from dpseg.prompts.bank import Bank
from dpseg.prompts.banks import PictureBank, chain, check_encoder, open_bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.refine import refine as refine_prompts
from dpseg.result import Segmentation

GPU_BATCH = 4
"""Images that a stream takes at a time on a GPU."""

RELEASE_EVERY = 4
"""So many batches of a stream, and freed memory is given back to the system."""


@dataclass(frozen=True)
class Encoded:
    """Photos of one encoder size, encoded."""

    photos: tuple[Photo, ...]
    pyramid: Pyramid


class Segmenter:
    """A model with what surrounds it: prompts, refinement, batches and results at the photo's own size.

    Attributes:
        model: in evaluation mode, on `device`.
        bank: visual prompts for classes that have only words, as they ship with the model; None: there are none.
        store: a bank of the user's own, which is asked before `bank`; None: there is none.
        refinement: which regions of Inference I become prompts of Inference II.
        cache: where embeddings of texts are kept.
    """

    def __init__(
        self,
        model: DPSeg,
        bank: Bank | None = None,
        refinement: RefineConfig | None = None,
        cache: EmbeddingCache | None = None,
        store: PictureBank | None = None,
    ) -> None:
        """Takes a model as it is, on the device where it is.

        Raises:
            WeightsError: a bank was made with another encoder.
        """
        check_encoder(model.encoder.fingerprint, bank, store)
        self.model = model.eval()
        self.bank, self.store = bank, store
        self.refinement = refinement or RefineConfig()
        self.cache = cache or EmbeddingCache()
        self._fingerprint = prompt_fingerprint(model.encoder)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "dpseg-lite",
        device: str | torch.device | None = None,
        store: str | Path | None = None,
    ) -> Self:
        """Loads a model and its bank.

        Args:
            name_or_path: a key of `MODELS`, a folder that `DPSeg.save_pretrained` wrote, or "user/model" on the hub.
            device: e.g. "cpu", "cuda", "cuda:1"; None: CUDA where there is a GPU, else the CPU.
            store: folder or file of a bank of one's own, which is asked first.

        Raises:
            ModelNotFoundError: there is no such model.
            WeightsError: its weights or the bank are missing, damaged, cannot be fetched or do not go together.
            ConfigError: there is no such device.
        """
        place = pick_device(device)
        model, bank = load_pretrained(name_or_path)
        return cls(model.to(place), bank, store=None if store is None else open_bank(store))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return encoder_device(self.model.encoder)

    def prompts(
        self, text: Sequence[str] | None = None, references: References | None = None, bank: bool = True
    ) -> PromptSet:
        """Encodes classes once, for any number of images.

        Args:
            text: K classes, synonyms after commas: ["cat", "couch, sofa"]. None: the classes are those of
                `references`, by their pictures alone.
            references: pictures by class: {"mug": ["a.jpg", Reference("b.jpg", mask="b.png")]}.
            bank: give classes without references the pictures that the banks have of things of that meaning.

        Raises:
            PromptError: there is no class, one stands twice, or a reference does not fit.
            ImageError: a reference cannot be read.
        """
        banks, templates = chain(self.store, self.bank) if bank else None, self.model.config.templates
        return build_prompts(self.model.encoder, text, references, templates, self.cache, banks)

    def __call__(
        self,
        image: ImageLike,
        text: Sequence[str] | None = None,
        references: References | None = None,
        *,
        prompts: PromptSet | None = None,
        refine: bool | None = None,
        background: float | None = None,
        bank: bool = True,
        size: int | None = None,
    ) -> Segmentation:
        """Segments one image.

        Args:
            image: a path, PIL image, array (H, W, 3), (H, W), or tensor (3, H, W).
            text: as `prompts`.
            references: as `prompts`.
            prompts: what `prompts` or `PromptSet.load` returned, in place of text and references.
            refine: run Inference II with crops of what Inference I found; None: as the model's config says.
            background: threshold in [0, 1]; pixels whose best score is below it get the label -1, none. None: no such
                pixels.
            bank: as `prompts`.
            size: another input size of the encoder in pixels than the model's own.

        Raises:
            PromptError: the classes or references cannot be used.
            ImageError: the image cannot be read.
            ConfigError: background or size is out of range.
        """
        if prompts is not None and (text is not None or references is not None):
            raise PromptError("both prompts and text or references are given; give one of the two")
        self._check_options(background, size)
        photo = self._load(image, size)
        prompts = self.prompts(text, references, bank) if prompts is None else prompts
        return self.decode(self._encode([photo]), prompts, refine, background)[0]

    def stream(
        self,
        images: Iterable[ImageLike],
        prompts: PromptSet,
        *,
        batch_size: int | None = None,
        refine: bool | None = None,
        background: float | None = None,
        size: int | None = None,
    ) -> Iterator[tuple[ImageLike, Segmentation | DPSegError]]:
        """Segments any number of images in their order, in the memory of a few.

        Images of one encoder size within a batch are encoded together; the next are read in a thread meanwhile.

        Args:
            images: read as they are needed.
            prompts: what `prompts` or `PromptSet.load` returned.
            batch_size: so many images at a time, 1 or more; None: `GPU_BATCH` on a GPU, and 1 on a CPU, which gains
                nothing by more.
            refine: as for one image.
            background: as for one image.
            size: as for one image.

        Returns:
            An iterator over (the image as it was given, its segmentation; or, where it cannot be read, the error).

        Raises:
            PromptError: the prompts are of another model.
            ConfigError: batch_size, background or size is out of range.
        """
        self._check_options(background, size)
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else GPU_BATCH
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size} is out of range; give 1 or more")
        return self._stream(images, self._usable(prompts), batch_size, refine, background, size)

    def _stream(
        self,
        images: Iterable[ImageLike],
        prompts: PromptSet,
        batch_size: int,
        refine: bool | None,
        background: float | None,
        size: int | None,
    ) -> Iterator[tuple[ImageLike, Segmentation | DPSegError]]:
        stride = self.model.encoder.strides[-1]
        batches = photo_batches(images, self.model.config, stride, size, batch_size)
        for number, batch in enumerate(batches):
            if number % RELEASE_EVERY == 0:
                release_free_memory()
            groups: dict[torch.Size, list[Photo]] = {}
            for _, photo in batch:
                if isinstance(photo, Photo):
                    groups.setdefault(photo.tensor.shape, []).append(photo)
            results = {
                id(photo): result
                for photos in groups.values()
                for photo, result in zip(
                    photos, self.decode(self._encode(photos), prompts, refine, background), strict=True
                )
            }
            for image, photo in batch:
                yield image, results.pop(id(photo)) if isinstance(photo, Photo) else photo

    def encode(self, images: Sequence[ImageLike], size: int | None = None) -> Encoded:
        """Encodes images for `decode`: once, for any number of prompts.

        Args:
            images: that have one encoder size, e.g. a single one.
            size: as for one image.

        Raises:
            ImageError: an image cannot be read.
            ConfigError: size is out of range, or the images have several encoder sizes.
        """
        self._check_options(None, size)
        photos = [self._load(image, size) for image in images]
        if len({photo.tensor.shape for photo in photos}) != 1:
            raise ConfigError(f"{len(photos)} images of several encoder sizes; encode one at a time, or use stream")
        return self._encode(photos)

    @torch.inference_mode()
    def decode(
        self, encoded: Encoded, prompts: PromptSet, refine: bool | None = None, background: float | None = None
    ) -> list[Segmentation]:
        """Segments what `encode` returned; the arguments are those for one image.

        Raises:
            PromptError: the prompts are of another model.
            ConfigError: background is out of range.
        """
        self._check_options(background, None)
        prompts = self._usable(prompts)
        logits = self.model.decode(encoded.pyramid, prompts.embeddings)  # Inference I
        used = [prompts] * len(encoded.photos)
        if (self.model.config.refine if refine is None else refine) and self.model.reads_pictures:
            originals = [photo.crop_source() for photo in encoded.photos]
            logits, used = refine_prompts(self.model, originals, encoded.pyramid, prompts, logits, self.refinement)
        return [
            Segmentation(
                labels=label_map(
                    one, (photo.image.height, photo.image.width), background, self.model.config.resize_scores
                ),
                names=prompts.names,
                logits=one.float().cpu().numpy(),
                image=photo.image,
                source=photo.source,
                prompts=mine.sources,
            )
            for photo, one, mine in zip(encoded.photos, logits, used, strict=True)
        ]

    @torch.inference_mode()
    def _encode(self, photos: Sequence[Photo]) -> Encoded:
        images = torch.stack([photo.tensor for photo in photos]).to(self.device)
        return Encoded(tuple(photos), self.model.encode(images))

    def _load(self, image: ImageLike, size: int | None) -> Photo:
        return load_photo(image, self.model.config, self.model.encoder.strides[-1], size)

    def _usable(self, prompts: PromptSet) -> PromptSet:
        """Returns the prompts on the model's device."""
        if prompts.encoder != self._fingerprint:
            raise PromptError(
                "these prompts were encoded by another model or another version of it; make them again with this one"
            )
        return prompts.with_embeddings(prompts.embeddings.to(self.device))

    @staticmethod
    def _check_options(background: float | None, size: int | None) -> None:
        if background is not None and not 0 <= background <= 1:
            raise ConfigError(f"background {background} is out of range; give a threshold from 0 to 1")
        if size is not None and not MIN_SIZE <= size <= MAX_SIZE:
            raise ConfigError(f"size {size} is out of range; give {MIN_SIZE} to {MAX_SIZE} pixels")
