"""What the decoder is told about a photo, class by class: cosines with words, pictures and both; and its answer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dpseg.errors import ConfigError
from dpseg.images import ImageLike
from dpseg.model.cost_volume import dual_cost_volume, visual_cost_volumes
from dpseg.model.dpseg import DPSeg
from dpseg.model.encoders import Pyramid
from dpseg.prompts.prompt_set import PromptSet
from dpseg.result import Segmentation
from dpseg.segmenter import Segmenter

TEXT, VISUAL, DUAL, PROBABILITY = "text", "visual", "dual", "probability"
"""Names of maps; those of F_v^j are "stage4", "stage3" and "stage2"."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of K classes over one photo.

    Attributes:
        photo: RGB, at its own size.
        names: K.
        maps: name -> (K, h, w) float32, each at its own resolution, in the order of the decoder: cosines in [-1, 1],
            averaged over templates, and at last the probability in [0, 1] of Inference I. A class without words or
            pictures has NaN where they are needed.
        first: Inference I, of all classes that were asked for.
        second: Inference II, of the same.
    """

    photo: Image.Image
    names: tuple[str, ...]
    maps: Mapping[str, NDArray[np.float32]]
    first: Segmentation
    second: Segmentation

    def to_npz(self) -> bytes:
        """Returns a NumPy archive: each map by its name, `names` of its rows, and the labels of both inferences.

        The arrays `labels_first` and `labels_second` (H, W) hold indices into `label_names`.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            **self.maps,
            "names": np.array(self.names),
            "label_names": np.array(self.first.names),
            "labels_first": self.first.labels,
            "labels_second": self.second.labels,
        }
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


@torch.inference_mode()
def explain_photo(
    segmenter: Segmenter, image: ImageLike, prompts: PromptSet, count: int = 6, size: int | None = None
) -> Explanation:
    """Segments a photo, and computes the maps of the classes with the largest area in it.

    Args:
        segmenter: the model.
        image: the photo.
        prompts: of all classes that compete for its pixels.
        count: so many classes at most, 1 or more; those that were not found come last, in their order.
        size: the encoder's input size in pixels; None: the model's own.

    Raises:
        ImageError: the photo cannot be read.
        PromptError: the prompts are of another model.
        ConfigError: count or size is out of range.
    """
    if count < 1:
        raise ConfigError(f"classes {count} is out of range; give 1 or more")
    encoded = segmenter.encode([image], size)
    first = segmenter.decode(encoded, prompts, refine=False)[0]
    second = segmenter.decode(encoded, prompts, refine=True)[0]
    names = largest_classes(first, count)
    maps = cost_maps(segmenter.model, encoded.pyramid, prompts.select(names))
    logits = torch.from_numpy(first.logits_of(names))
    return Explanation(encoded.photos[0].image, names, {**maps, PROBABILITY: logits.sigmoid().numpy()}, first, second)


def largest_classes(result: Segmentation, count: int) -> tuple[str, ...]:
    """Returns the names of `count` classes at most, by area, and those without any in the order of the names."""
    return tuple(sorted(result.names, key=lambda name: -result.areas.get(name, 0.0))[:count])


@torch.inference_mode()
def cost_maps(model: DPSeg, pyramid: Pyramid, prompts: PromptSet) -> dict[str, NDArray[np.float32]]:
    """Returns the cost volumes of K classes, averaged over templates; classes that lack a prompt have NaN.

    The dual one is the paper's F_c, whatever `ModelConfig.fusion` the decoder reads.

    Args:
        model: which scales guide its decoder.
        pyramid: one encoded photo.
        prompts: of the K classes.

    Returns:
        "text", "visual" and "dual", (K, H, W), and "stageJ", (K, H_j, W_j), for each F_v^j that the decoder reads.
    """
    embeddings = prompts.embeddings.to(pyramid.dense.device)
    stages = visual_cost_volumes(pyramid.stages, embeddings, model.decoder.guided)  # F_v^j
    with_text, with_visual = embeddings.has_text, embeddings.has_visual
    return {
        TEXT: _mean_map(dual_cost_volume(pyramid.dense, embeddings, "text"), with_text),
        VISUAL: _mean_map(dual_cost_volume(pyramid.dense, embeddings, "visual"), with_visual),
        DUAL: _mean_map(dual_cost_volume(pyramid.dense, embeddings, "average"), with_text | with_visual),  # F_c
        **{f"stage{j}": _mean_map(volume, with_visual) for j, volume in stages.items()},
    }


def _mean_map(volume: Tensor, present: Tensor) -> NDArray[np.float32]:
    """Averages (1, K, M, h, w) over templates: (K, h, w), NaN for classes that are not present (K,)."""
    maps = volume[0].float().mean(dim=1)
    filled: NDArray[np.float32] = maps.masked_fill(~present[:, None, None], float("nan")).cpu().numpy()
    return filled
