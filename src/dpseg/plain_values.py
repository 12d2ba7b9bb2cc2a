"""Frozen dataclasses from plain values, as YAML and JSON hold them: read strictly, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from dpseg.errors import ConfigError, did_you_mean


class Loadable:
    """A frozen dataclass that is read from plain values, as YAML and JSON hold them."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the dataclass.

        Args:
            values: by field name; lists stand for tuples, mappings for nested dataclasses.

        Raises:
            ConfigError: A key is unknown, or a value is of another type or not among the choices.
        """
        types = get_type_hints(cls)
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in {cls.__name__}; {did_you_mean(str(key), known)}")
        return cls(**{key: _convert(f"{cls.__name__}.{key}", types[key], value) for key, value in values.items()})


def _convert(where: str, kind: Any, value: Any) -> Any:
    """Turns a plain value into one of the annotated type, or says what does not fit."""
    options = get_args(kind)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return kind.from_dict(value)  # type: ignore[union-attr]
    if get_origin(kind) is Literal:
        if value not in options:
            raise ConfigError(f"{where} is {value!r}; give one of {', '.join(map(repr, options))}")
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner = [options[0]] * len(value) if len(options) == 2 and options[1] is ... else list(options)
        if len(inner) != len(value):
            raise ConfigError(f"{where} needs {len(inner)} values, not {len(value)}")
        return tuple(_convert(where, one, item) for one, item in zip(inner, value, strict=True))
    if type(None) in options:
        rest = next(option for option in options if option is not type(None))
        return None if value is None else _convert(where, rest, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ConfigError(f"{where} is {value!r}; give a value of type {kind.__name__}")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a recipe.

    Raises:
        ConfigError: The file is missing, or is not a YAML mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the recipe {str(path)!r} ({error.strerror}); give a file such as configs/lite.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of settings; see configs/lite.yaml")
    return values
