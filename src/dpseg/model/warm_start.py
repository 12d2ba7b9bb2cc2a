"""Starting a model from another's weights, such as DPSeg from SED: what fits is taken, and the rest is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from dpseg.errors import WeightsError
from dpseg.model.dpseg import DPSeg
from dpseg.model.hub import WEIGHTS_FILE


@dataclass(frozen=True)
class WarmStart:
    """What became of the tensors, by name.

    Attributes:
        taken: those that the model has from the folder.
        kept: those of the model that stayed as they were: the folder has none of that name, or of another shape.
        unused: those of the folder that found no place.
    """

    taken: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]


def warm_start(model: DPSeg, folder: Path) -> WarmStart:
    """Gives a model every tensor of a saved model that has the same name and shape.

    DPSeg takes from SED the fine-tuned CLIP and the decoder, without its spatial blocks and its cost guidance. The
    frozen visual prompt encoder (`tune_encoder`) stays as the model has it: SED has none.

    Args:
        model: changed in place.
        folder: of a saved model, such as `dpseg convert sed` writes.

    Raises:
        WeightsError: the folder holds no weights, they cannot be read, or they are of another encoder.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"{folder}: holds no {WEIGHTS_FILE}; give the folder of a saved model")
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises an exception of its own
        raise WeightsError(f"{path} cannot be read ({error}): fetch or save it again") from error
    own = model.saved_state()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if not any(name.startswith("encoder.") for name in fitting):
        raise WeightsError(
            f"{path}: is of another encoder than {model.config.encoder!r}; start from a model that has it"
        )
    model.load_state_dict(fitting, strict=False)
    return WarmStart(
        taken=tuple(sorted(fitting)),
        kept=tuple(sorted(own.keys() - fitting.keys())),
        unused=tuple(sorted(state.keys() - fitting.keys())),
    )
