"""Pseudo-labels: a trained model names what a data set leaves unlabelled, where it is certain.

Lee, Pseudo-Label (ICML workshop 2013); the student sees stronger augmentation than the teacher did, as in Xie et al.,
Self-training with Noisy Student (CVPR 2020). Where a picture's name is known and its place is not, the name's logit is
raised until it wins somewhere.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.errors import ImageError
from dpseg.files import make_folder, write_atomically
from dpseg.images import read_mask
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.prompts.prompt_set import PromptSet
from dpseg.recipe import Teacher
from dpseg.segmenter import Segmenter

NOT_CERTAIN = 65535
"""The value of a pixel that the teacher does not name, in the files that keep its labels."""

SHOWN_AREA = 0.03
"""A picture shows the thing that it is named after in at least this share of its pixels."""

SHOWN_MARGIN = 4.0
"""By so much its logit beats all others together there (a softmax of 0.98)."""

MAX_RAISE = 6.0
"""A name that must be raised by more is not where the teacher looks."""

SAME_THING = 0.1
"""What the teacher sees unraised in this share of a shown thing may be another word for it, or a part of it."""


class PseudoLabels:
    """A teacher's labels of photos, each made once and kept as a PNG file."""

    def __init__(self, teacher: Teacher, names: Sequence[str], folder: Path) -> None:
        """Loads the teacher and encodes its names.

        Args:
            teacher: which model, and how certain it must be.
            names: K names, synonyms after commas.
            folder: for the files; labels of another teacher or of other names go to another folder in it.

        Raises:
            ModelNotFoundError: there is no such model.
            OutputError: the folder cannot be made.
        """
        self.segmenter = Segmenter.from_pretrained(teacher.model)
        self.names = tuple(names)
        self.prompts = self.segmenter.prompts(self.names, bank=False)
        self.confidence = teacher.confidence
        model = self.segmenter.model
        weights = weights_fingerprint(model.encoder.fingerprint, model.saved_state().values())
        key = hashlib.sha256(repr((weights, teacher.confidence, tuple(names))).encode()).hexdigest()[:16]
        self.folder = make_folder(folder / key)

    def label(self, key: str, image: Tensor) -> NDArray[np.int32]:
        """Labels a photo, or reads its labels.

        Args:
            key: the photo's name, unique in the folder.
            image: (3, H, W) uint8 RGB.

        Returns:
            (H, W): indices of the K names, `NOT_CERTAIN` elsewhere.
        """
        return self._keep(key, lambda: self._certain(self._logits(image, self.prompts)))

    def locate(self, key: str, image: Tensor, shown: str) -> tuple[NDArray[np.int32], tuple[int, ...]]:
        """Finds what a picture is named after, or reads where it is.

        Args:
            key: the picture's name, unique in the folder.
            image: (3, H, W) uint8 RGB.
            shown: its name, one of the K or not.

        Returns:
            (H, W): indices of the K names, K where `shown` is, `NOT_CERTAIN` elsewhere; and indices of those names that
            may mean the same thing.
        """
        count = len(self.names)
        labels = self._keep(key, lambda: self._find(image, shown))
        found = (labels >= count) & (labels != NOT_CERTAIN)
        unraised = np.bincount(labels[found] - count, minlength=count + 1)[:count]
        same = np.flatnonzero(unraised > SAME_THING * found.sum())
        labels[found] = count
        return labels, tuple(same.tolist())

    def _find(self, image: Tensor, shown: str) -> NDArray[np.int32]:
        """As `locate`, but K + k where `shown` is and k won before it was raised; k = K where it won itself."""
        count = len(self.names)
        others = [index for index, name in enumerate(self.names) if name.split(",")[0] != shown]
        prompts = self.segmenter.prompts([*(self.names[index] for index in others), shown], bank=False)
        logits = self._logits(image, prompts)
        index_of = torch.tensor([*others, count])
        unraised = index_of[logits.argmax(dim=0)]
        margin = logits[-1] - logits[:-1].logsumexp(dim=0)
        missing = SHOWN_MARGIN - float(torch.quantile(margin, 1 - SHOWN_AREA))
        if missing > MAX_RAISE:
            return np.full(margin.shape, NOT_CERTAIN, dtype=np.int32)
        logits = torch.cat([logits[:-1], logits[-1:] + max(missing, 0.0)])
        labels = torch.from_numpy(self._certain(logits)).long()
        certain = labels != NOT_CERTAIN
        labels[certain] = index_of[labels[certain]]
        return torch.where(labels == count, count + unraised, labels).numpy().astype(np.int32)

    @torch.inference_mode()
    def _logits(self, image: Tensor, prompts: PromptSet) -> Tensor:
        """Returns the logits of each pixel, (K, H, W)."""
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        result = self.segmenter(photo, prompts=prompts, refine=False)
        logits = torch.from_numpy(result.logits_of(result.names))
        return F.interpolate(logits[None].clamp_min(-50.0), image.shape[-2:], mode="bilinear", align_corners=False)[0]

    def _certain(self, logits: Tensor) -> NDArray[np.int32]:
        shares, labels = logits.softmax(dim=0).max(dim=0)
        return torch.where(shares >= self.confidence, labels, NOT_CERTAIN).numpy().astype(np.int32)

    def _keep(self, key: str, make: Callable[[], NDArray[np.int32]]) -> NDArray[np.int32]:
        """Reads a photo's file, or writes it."""
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.png"
        if path.is_file():
            try:
                return read_mask(path)
            except ImageError:
                pass  # it is made again
        labels = make()
        buffer = io.BytesIO()
        Image.fromarray(labels.astype(np.uint16)).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
        return labels
