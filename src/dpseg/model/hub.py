"""Saving and loading a model: a folder with config.json and model.safetensors, or the same on the Hugging Face hub."""

# No `from __future__ import annotations`: the mixin looks at the real types of __init__'s arguments.
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpseg.config import ModelConfig
from dpseg.errors import WeightsError

WEIGHTS_FILE = "model.safetensors"


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="dpseg",
    license="apache-2.0",
    tags=["image-segmentation", "open-vocabulary"],
):
    """A module that is built from a `ModelConfig` and saved with it, less the weights that registry packages carry."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def packaged(self) -> tuple[str, ...]:
        """Returns prefixes of the state dict's names whose tensors are loaded from registry packages, and not saved."""
        return ()

    def saved_state(self) -> dict[str, Tensor]:
        """Returns the tensors that a saved model holds."""
        skip = self.packaged()
        return {
            name: tensor.detach().contiguous()
            for name, tensor in self.state_dict().items()
            if not (skip and name.startswith(skip))
        }

    def load_saved_state(self, state: dict[str, Tensor], source: str) -> None:
        """Loads what `saved_state` returned, in any float type.

        Args:
            state: names and tensors.
            source: where they come from, for the error.

        Raises:
            WeightsError: A tensor is missing, unknown, or of another shape.
        """
        own = self.saved_state()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        for kind, names in (("lacks", missing), ("has an unknown", extra), ("has another shape for", sorted(wrong))):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise WeightsError(
                    f"{source} {kind} {names[0]}{more}: it was not saved by a model of this config and version; train"
                    " it again"
                )
        self.load_state_dict(state, strict=False)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_file(self.saved_state(), save_directory / WEIGHTS_FILE)

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the mixin passes what it read from config.json
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        config: ModelConfig,
        map_location: str = "cpu",
        strict: bool = True,
    ) -> Self:
        config = ModelConfig.from_dict(asdict(config))  # JSON made lists of its tuples
        model = cls(replace(config, weights="random"))  # its own weights follow: none need be fetched
        model.config = config
        if Path(model_id).is_dir():
            path = str(Path(model_id) / WEIGHTS_FILE)
        else:
            path = hf_hub_download(
                model_id,
                WEIGHTS_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        try:
            state = load_file(path, device=map_location)
        except Exception as error:  # safetensors raises an exception of its own
            raise WeightsError(f"{path} cannot be read ({error}): fetch or save it again") from error
        model.load_saved_state(state, path)
        return model.eval()
