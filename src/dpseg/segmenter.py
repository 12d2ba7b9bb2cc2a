"""Segmenter: photos, words and reference pictures in, segmentations out.

>>> segmenter = Segmenter.from_pretrained("dpseg-lite")
>>> result = segmenter("desk.jpg", text=["mug", "laptop", "wall"], references={"mug": ["my_mug.jpg"]})
>>> result.areas
{"wall": 0.52, "laptop": 0.21, "mug": 0.04}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import torch

from dpseg.cache import EmbeddingCache
from dpseg.config import FeaturePrompts, Refine, RefineConfig
from dpseg.errors import ConfigError, DPSegError, PromptError
from dpseg.images import ImageLike
from dpseg.matching import Matching
from dpseg.memory import release_free_memory
from dpseg.model.class_logits import Decoded
from dpseg.model.dpseg import DPSeg
from dpseg.model.preprocess import MAX_SIZE, MIN_SIZE
from dpseg.model.prompt_encoding import encoder_device, prompt_fingerprint
from dpseg.model.prompting import References, build_prompts
from dpseg.photos import Encoded, Photo, by_size, load_photo, photo_batches
from dpseg.precision import Precision
from dpseg.pretrained import load_pretrained, pick_device
from dpseg.prompts.bank import Bank
from dpseg.prompts.banks import PictureBank, check_encoder, feature_bank, open_bank
from dpseg.prompts.prompt_set import PromptSet
from dpseg.refine import find_regions, prompts_of
from dpseg.refine import refine as refine_prompts
from dpseg.rejection import Rejection
from dpseg.result import Segmentation
from dpseg.scene import Scene

GPU_BATCH = 4
"""Images that a stream takes at a time on a GPU."""

RELEASE_EVERY = 4
"""So many batches of a stream, and freed memory is given back to the system."""


class Segmenter:
    """A model with what surrounds it: prompts, refinement, batches and results at the photo's own size.

    Attributes:
        model: in evaluation mode, on `device`.
        bank: visual prompts for classes that have only words, as they ship with the model; None: there are none.
        store: a bank of the user's own, which is asked before `bank`; None: there is none.
        refinement: which regions of Inference I become prompts of Inference II.
        cache: where embeddings of texts are kept.
        feature_prompts: what classes that have only words get from the banks.
    """

    def __init__(
        self,
        model: DPSeg,
        bank: Bank | None = None,
        refinement: RefineConfig | None = None,
        cache: EmbeddingCache | None = None,
        store: PictureBank | None = None,
        feature_prompts: FeaturePrompts = "blend",
    ) -> None:
        """Takes a model as it is, on the device where it is.

        Raises:
            WeightsError: a bank was made with another encoder.
        """
        check_encoder(model.encoder.fingerprint, bank, store)
        self.model = model.eval()
        self.bank, self.store, self.feature_prompts = bank, store, feature_prompts
        self.refinement, self.cache = refinement or RefineConfig(), cache or EmbeddingCache()
        self._fingerprint = prompt_fingerprint(model.encoder)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "dpseg-lite",
        device: str | torch.device | None = None,
        store: str | Path | None = None,
        feature_prompts: FeaturePrompts = "blend",
        matching: Matching | None = None,
        rejection: Rejection | None = None,
        precision: Precision = "32",
    ) -> Self:
        """Loads a model and its bank.

        Args:
            name_or_path: a key of `MODELS`, a folder that `DPSeg.save_pretrained` wrote, or "user/model" on the hub.
            device: e.g. "cpu", "cuda", "cuda:1"; None: CUDA where there is a GPU, else the CPU.
            store: folder or file of a bank of one's own, which is asked first.
            feature_prompts: what classes that have only words get from the banks, see `FeaturePrompts`.
            matching: how prompts are compared with a photo, e.g. `MATCHINGS["alike"]`; None: as the config says.
            rejection: which classes of a long list are given up early; None: as the config says.
            precision: "bf16" is faster where the processor or GPU has bfloat16, and changes some labels.

        Raises:
            ModelNotFoundError: there is no such model.
            WeightsError: its weights or the bank are missing, damaged, cannot be fetched or do not go together.
            ConfigError: there is no such device.
        """
        place = pick_device(device)
        model, bank = load_pretrained(name_or_path, matching, rejection)
        model.set_precision(precision)
        return cls(model.to(place), bank, None, None, None if store is None else open_bank(store), feature_prompts)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return encoder_device(self.model.encoder)

    def prompts(
        self, text: Sequence[str] | None = None, references: References | None = None, bank: bool = True
    ) -> PromptSet:
        """Encodes classes once, for any number of images.

        Args:
            text: K classes, synonyms after commas: ["cat", "couch, sofa"]; None: those of `references`, without words.
            references: pictures by class: {"mug": ["a.jpg", Reference("b.jpg", mask="b.png")]}.
            bank: give classes without references the pictures that the banks have of things of that meaning.

        Raises:
            PromptError: there is no class, one stands twice, or a reference does not fit.
            ImageError: a reference cannot be read.
            ConfigError: pictures are to be regressed, and there is no bank.
        """
        banks, config = feature_bank(self.feature_prompts, self.store, self.bank) if bank else None, self.model.config
        return build_prompts(self.model.encoder, text, references, config.templates, self.cache, banks, config.matching)

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
            background: threshold in [0, 1]; pixels that score below it get the label -1, none. None: no such pixels.
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
        photo = load_photo(image, self.model.config, self.model.encoder.strides[-1], size)
        prompts = self.prompts(text, references, bank) if prompts is None else prompts
        return self.decode(self._encode([photo]), prompts, refine, background)[0]

    def stream(
        self,
        images: Iterable[ImageLike],
        prompts: PromptSet,
        *,
        batch_size: int | None = None,
        refine: Refine = None,
        background: float | None = None,
        size: int | None = None,
    ) -> Iterator[tuple[ImageLike, Segmentation | DPSegError]]:
        """Segments any number of images in their order, in the memory of a few.

        Images of one encoder size within a batch are encoded together; the next are read in a thread meanwhile.

        Args:
            images: read as they are needed.
            prompts: what `prompts` or `PromptSet.load` returned.
            batch_size: so many images at a time, 1 or more; None: `GPU_BATCH` on a GPU, 1 on a CPU: more gains nothing.
            refine: as for one image; or "sequence": the images show one scene, one after the other, and each is decoded
                once, by itself, with what was found in those before it, see `Scene`.
            background: as for one image.
            size: as for one image.

        Returns:
            An iterator over (the image as it was given, its segmentation; or, where it cannot be read, the error).

        Raises:
            PromptError: the prompts are of another model.
            ConfigError: batch_size, background or size is out of range.
        """
        self._check_options(background, size)
        count = (1 if self.device.type == "cpu" else GPU_BATCH) if batch_size is None else batch_size
        if count < 1:
            raise ConfigError(f"batch size {batch_size} is out of range; give 1 or more")
        if refine == "sequence" and batch_size not in (None, 1):
            raise ConfigError(f"batch size {batch_size} does not go with a sequence, whose photos come one by one")
        prompts = self.usable(prompts)
        if refine == "sequence":
            scene = Scene(prompts, self.refinement)
            return self._stream(images, 1, lambda encoded: [self.follow(encoded, scene, background)], size)
        return self._stream(images, count, lambda encoded: self.decode(encoded, prompts, refine, background), size)

    def _stream(
        self, images: Iterable[ImageLike], count: int, decode: Callable[[Encoded], list[Segmentation]], size: int | None
    ) -> Iterator[tuple[ImageLike, Segmentation | DPSegError]]:
        batches = photo_batches(images, self.model.config, self.model.encoder.strides[-1], size, count)
        for number, batch in enumerate(batches):
            if number % RELEASE_EVERY == 0:
                release_free_memory()
            results = {
                id(photo): result
                for photos in by_size(batch)
                for photo, result in zip(photos, decode(self._encode(photos)), strict=True)
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
        photos = [load_photo(image, self.model.config, self.model.encoder.strides[-1], size) for image in images]
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
        prompts = self.usable(prompts)
        found = [self._look(one, prompts, background) for one in encoded]  # Inference I
        used = [prompts] * len(found)
        if (self.model.config.refine if refine is None else refine) and self.model.reads_pictures:
            regions = [find_regions(one.best, one.leaders, self.refinement) for one in found]
            used = refine_prompts(self.model, encoded, prompts, regions, self.refinement)
            for number, mine in enumerate(used):
                if mine is not prompts:
                    found[number] = self._look(encoded[number], mine, background, found[number])  # Inference II
        return [
            Segmentation.of(one, prompts.names, photo.image, photo.source, mine.sources)
            for photo, one, mine in zip(encoded.photos, found, used, strict=True)
        ]

    @torch.inference_mode()
    def follow(self, encoded: Encoded, scene: Scene, background: float | None = None) -> Segmentation:
        """Segments the next photo of a scene once, with what the scene knows, and lets it learn from the photo.

        Args:
            encoded: a single photo.
            scene: begun with usable prompts.
            background: as for one image.
        """
        (photo,), used = encoded.photos, scene.prompts
        found = self._look(encoded, used, background)
        if self.model.reads_pictures:
            regions = find_regions(found.best, found.leaders, self.refinement)
            scene.add(prompts_of(self.model.encoder, encoded, used.names, [regions], self.refinement)[0])
        return Segmentation.of(found, used.names, photo.image, photo.source, used.sources)

    def _look(
        self, encoded: Encoded, prompts: PromptSet, background: float | None, before: Decoded | None = None
    ) -> Decoded:
        size = encoded.photos[0].image.height, encoded.photos[0].image.width
        return self.model.decode_photo(encoded.pyramid, prompts.embeddings, size, background, before)

    @torch.inference_mode()
    def _encode(self, photos: Sequence[Photo]) -> Encoded:
        images = torch.stack([photo.tensor for photo in photos]).to(self.device)
        return Encoded(tuple(photos), self.model.encode(images))

    def usable(self, prompts: PromptSet) -> PromptSet:
        """Returns prompts on the model's device; those of another model are a PromptError."""
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
