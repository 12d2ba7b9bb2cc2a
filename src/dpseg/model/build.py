"""From a ModelConfig to its encoder; imports only the one that is asked for."""

from __future__ import annotations

from dpseg.config import ModelConfig
from dpseg.errors import ConfigError, did_you_mean
from dpseg.model.encoders import Encoder


def build_encoder(config: ModelConfig) -> Encoder:
    """Makes the encoder that the config names, with its weights.

    Raises:
        ConfigError: no encoder goes by that name.
        MissingExtraError: the encoder needs open_clip, which is not installed.
        WeightsError: its weights are missing, cannot be fetched, or do not fit.
    """
    name: str = config.encoder  # a recipe may hold any word
    match name:
        case "lite":
            from dpseg.model.lite import LiteEncoder

            return LiteEncoder(config)
        case "base" | "large":
            from dpseg.model.clip import ClipEncoder

            return ClipEncoder(config)
        case "tiny":
            from dpseg.model.tiny import TinyEncoder

            return TinyEncoder(config)
        case _:
            hint = did_you_mean(name, ("lite", "base", "large", "tiny"))
            raise ConfigError(f"there is no encoder {name!r}; {hint}")
