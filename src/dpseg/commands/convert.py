"""`dpseg convert`: other systems' weights -> the folder that `Segmenter.from_pretrained` loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from dpseg.files import make_folder, write_atomically


def convert_sed(checkpoint: Path, out: Path, console: Console) -> int:
    """Turns a checkpoint of SED into a model folder, in the precision that it has.

    Args:
        checkpoint: as SED publishes it, a .pth file.
        out: folder, made where it is missing.
        console: told a line at a time.

    Raises:
        WeightsError: the checkpoint cannot be read, or is not SED's.
        OutputError: the folder cannot be written.
    """
    make_folder(out)
    console.print(f"reading {checkpoint}", markup=False, soft_wrap=True)
    from safetensors.torch import save

    from dpseg.model.hub import WEIGHTS_FILE
    from dpseg.model.sed import load_sed

    model = load_sed(checkpoint)
    state = model.saved_state()
    write_atomically(out / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))
    config = json.dumps({"config": dataclasses.asdict(model.config)}, indent=2)
    write_atomically(out / "config.json", config.encode())
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6
    line = f"{out}: SED {model.config.encoder}, {len(state)} tensors, {size:.0f} MB; give the folder as --model"
    console.print(line, markup=False, soft_wrap=True)
    return 0
