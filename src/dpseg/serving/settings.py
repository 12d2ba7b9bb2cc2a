"""What a server takes and keeps: its limits, as its operator set them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dpseg.errors import ConfigError

MEGA = 1_000_000
"""Pixels of a megapixel, and bytes of a megabyte."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits and options of a server; every request keeps to them, whoever sends it.

    Attributes:
        token: what callers send as `Authorization: Bearer`; None: nobody needs one.
        prompts_dir: folder of saved prompt sets, read at the start and written by POST /v1/prompts; None: they are kept
            in memory only.
        max_body_mb: megabytes of a request.
        max_megapixels: of the photo.
        max_reference_megapixels: of all reference pictures and masks of a request together.
        max_names: classes of a request.
        max_name_length: characters of a class with its synonyms.
        max_references: reference pictures of a request.
        max_saved: prompt sets that requests may leave in `prompts_dir`; the oldest make room.
        prompts_memory_mb: megabytes of prompt sets in memory: so much for saved ones, and as much for others.
        queue: requests that are taken at a time, from their first byte to their answer; more are refused with 503.
        per_client: of these, so many of one address; more are refused with 429.
        batch_size: photos that the model takes at a time; None: as suits the device.
        workers: batches in work at a time; None: as suits the device.
        body_seconds: within which a request has to arrive.
    """

    token: str | None = field(default=None, repr=False)
    prompts_dir: Path | None = None
    max_body_mb: float = 32.0
    max_megapixels: float = 24.0
    max_reference_megapixels: float = 100.0
    max_names: int = 200
    max_name_length: int = 200
    max_references: int = 50
    max_saved: int = 1000
    prompts_memory_mb: float = 256.0
    queue: int = 32
    per_client: int = 16
    batch_size: int | None = None
    workers: int | None = None
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a limit is not above 0, or the token is empty.
        """
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"{name} {value} is out of range; give a number above 0")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError("the token is empty, or not of plain characters; give a long random one, or none at all")

    @property
    def max_body(self) -> int:
        """Bytes of a request."""
        return int(self.max_body_mb * MEGA)

    @property
    def max_pixels(self) -> int:
        """Pixels of the photo."""
        return int(self.max_megapixels * MEGA)

    @property
    def max_reference_pixels(self) -> int:
        """Pixels of all reference pictures and masks of a request."""
        return int(self.max_reference_megapixels * MEGA)
