"""Pseudo-labels: a trained model names what a data set leaves unlabelled, where it is certain.

Lee, Pseudo-Label (ICML workshop 2013); the student sees stronger augmentation than the teacher did, as in Xie et al.,
Self-training with Noisy Student (CVPR 2020).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dpseg.config import Teacher
from dpseg.errors import ImageError
from dpseg.files import make_folder, write_atomically
from dpseg.images import read_mask
from dpseg.model.fingerprint import weights_fingerprint
from dpseg.segmenter import Segmenter

NOT_CERTAIN = 65535
"""The value of a pixel that the teacher does not name, in the files that keep its labels."""


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
        self.prompts = self.segmenter.prompts(list(names))
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
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.png"
        if path.is_file():
            try:
                return read_mask(path)
            except ImageError:
                pass  # it is made again
        labels = self._predict(image)
        buffer = io.BytesIO()
        Image.fromarray(labels.astype(np.uint16)).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
        return labels

    @torch.inference_mode()
    def _predict(self, image: Tensor) -> NDArray[np.int32]:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        logits = torch.from_numpy(self.segmenter(photo, prompts=self.prompts, refine=False).logits)
        logits = F.interpolate(logits[None].clamp_min(-50.0), image.shape[-2:], mode="bilinear", align_corners=False)[0]
        shares, labels = logits.softmax(dim=0).max(dim=0)
        return torch.where(shares >= self.confidence, labels, NOT_CERTAIN).numpy().astype(np.int32)
