"""`dpseg average`: one model from several trained ones of the same kind, their weights averaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dpseg.commands.places import check_writable
from dpseg.errors import ConfigError
from dpseg.files import make_folder, write_atomically

_BESIDE = ("names.txt", "bank.safetensors")
"""What else lies in a model's folder; the average takes that of the first."""


def average(models: Sequence[str], out: Path, console: Console) -> int:
    """Averages the weights of models that went on training from the same one, and writes a model folder.

    Such models mostly lie in one valley of the loss, and their average is as good as an ensemble at the price of one
    (Wortsman et al., Model soups, ICML 2022). Models that were trained from nothing do not, so measure the result.

    Args:
        models: two or more names, folders or hub ids.
        out: folder; made where it is missing.
        console: where the result is named.

    Returns:
        The exit status, 0.

    Raises:
        ConfigError: there are too few models, or they differ in more than their weights.
        ModelNotFoundError: there is no such model.
        WeightsError: a file of one is missing or damaged.
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import load_file, save

    from dpseg.model.hub import WEIGHTS_FILE
    from dpseg.pretrained import load_pretrained, model_folder

    if len(models) < 2:
        raise ConfigError(f"{len(models)} model given; give two or more")
    folders = [model_folder(model) for model in models]
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise ConfigError(f"{out} is one of the models; choose another --out")
    configs = [load_pretrained(folder)[0].config for folder in folders]  # which finds what is missing or damaged
    for folder, config in zip(folders, configs, strict=True):
        if config != configs[0]:
            raise ConfigError(f"{folders[0]} and {folder} are models of different configs; average ones of the same")
        if _names(folder) != _names(folders[0]):
            raise ConfigError(f"{folders[0]} and {folder} were trained on different names; average ones of the same")
    first, *others = (load_file(folder / WEIGHTS_FILE) for folder in folders)
    mean = {
        name: (sum((other[name].double() for other in others), tensor.double()) / len(folders)).to(tensor.dtype)
        for name, tensor in first.items()
    }
    check_writable(out)
    make_folder(out)
    for name in _BESIDE:
        if (folders[0] / name).is_file():
            write_atomically(out / name, (folders[0] / name).read_bytes())
    write_atomically(out / "config.json", (folders[0] / "config.json").read_bytes())
    path = write_atomically(out / WEIGHTS_FILE, save(mean, metadata={"format": "pt"}))
    console.print(f"{len(folders)} models averaged: {path.parent}", markup=False, soft_wrap=True)
    return 0


def _names(folder: Path) -> str:
    path = folder / _BESIDE[0]
    return path.read_text(encoding="utf-8") if path.is_file() else ""
