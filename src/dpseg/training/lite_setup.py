"""What dpseg-lite's encoder needs before its first step: the text regression, the mean feature, and its bank."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dpseg.errors import DataError, MissingExtraError
from dpseg.model.lite import LiteEncoder
from dpseg.prompts.bank import Bank
from dpseg.prompts.text import templates
from dpseg.recipe import TrainConfig
from dpseg.training.corpus import Corpus
from dpseg.training.regions import Regions, encode_pictures


def imagenet_names() -> list[str]:
    """Returns the 1000 class names in the classifier's order, as open_clip carries them.

    Raises:
        MissingExtraError: open_clip is not installed.
    """
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError as error:
        raise MissingExtraError("training dpseg-lite needs open_clip: pip install 'dpseg[clip]'") from error
    return list(IMAGENET_CLASSNAMES)


def fit_encoder(encoder: LiteEncoder, local_features: Tensor, log_frequencies: Tensor, regions: Regions) -> None:
    """Fits what is not trained by gradients.

    Args:
        encoder: untrained.
        local_features: (N, 384) text features of the names that training will see.
        log_frequencies: (N,), how often masks show them, see `log_frequency`.
        regions: encoded objects; their mean becomes the joint space's centre.
    """
    sentence = templates(1)[0]
    names = encoder.text_features([sentence.format(name) for name in imagenet_names()])
    encoder.text_map.fit(names)
    encoder.text_map.local_support.copy_(local_features)
    encoder.text_map.log_frequencies.copy_(log_frequencies)
    encoder.centre.copy_(regions.dense.mean(dim=0))


def build_bank(encoder: LiteEncoder, corpus: Corpus, regions: Regions, config: TrainConfig) -> Bank:
    """Makes the bank of visual prompts: one entry a name of the training photos, and one a name of the exemplars.

    Args:
        encoder: whose frozen networks.
        corpus: the training photos.
        regions: their encoded objects; a name's entry is their average.
        config: names the exemplar folders, laid out NAME/PICTURE.
    """
    names: list[str] = []
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for index, name in enumerate(corpus.names):
        mine = (regions.names == index).nonzero()[:, 0]
        if len(mine):
            names.append(name.split(",")[0])
            rows.append(_mean(regions.dense[mine], regions.stages, mine))
    for folder in config.exemplars:
        root = Path(config.data_root) / folder
        if not root.is_dir():
            raise DataError(f"exemplar folder {str(root)!r} does not exist; mend exemplars: in the recipe")
        for path in sorted(entry for entry in root.iterdir() if entry.is_dir()):
            name = path.name.replace("_", " ")
            if name in config.hold_out:
                continue
            dense, stages = encode_pictures(sorted(p for p in path.iterdir() if p.is_file()), encoder)
            names.append(name)
            rows.append(_mean(dense, stages, torch.arange(len(dense))))
    text = torch.cat([F.normalize(encoder.text_features([name]), dim=-1) for name in names])
    dense, s2, s3, s4 = (torch.stack(column) for column in zip(*rows, strict=True))
    return Bank(tuple(names), text, dense, (s2, s3, s4), encoder.fingerprint)


def _mean(dense: Tensor, stages: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s2, s3, s4 = (stage[rows].mean(dim=0) for stage in stages)
    return dense[rows].mean(dim=0) if len(dense) != len(rows) else dense.mean(dim=0), s2, s3, s4
