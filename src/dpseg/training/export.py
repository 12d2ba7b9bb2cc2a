"""A trained model -> the folder that `Segmenter.from_pretrained` loads: config, weights and, for lite, its bank."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save

from dpseg.files import make_folder, write_atomically
from dpseg.model.dpseg import DPSeg
from dpseg.model.hub import WEIGHTS_FILE
from dpseg.model.lite import LiteEncoder
from dpseg.training.lite_setup import build_bank
from dpseg.training.loop import Setup


def export(model: DPSeg, setup: Setup, folder: Path) -> Path:
    """Writes a model in half precision.

    Args:
        model: trained.
        setup: of its run; its photos and exemplars fill lite's bank.
        folder: made where it is missing.

    Returns:
        The folder.
    """
    make_folder(folder)
    state = {
        name: tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        for name, tensor in model.saved_state().items()
    }
    write_atomically(folder / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))
    config = json.dumps({"config": dataclasses.asdict(model.config)}, indent=2)
    write_atomically(folder / "config.json", config.encode())
    write_atomically(folder / "names.txt", ("\n".join(setup.corpus.names) + "\n").encode())
    if isinstance(model.encoder, LiteEncoder):
        build_bank(model.encoder, setup.corpus, setup.regions, setup.config).save(folder / "bank.safetensors")
    return folder
