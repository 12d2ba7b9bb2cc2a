"""Early rejection: of a long list of classes, only those that a photo seems to show are decoded to the end."""

from __future__ import annotations

from dataclasses import dataclass

from dpseg.errors import ConfigError
from dpseg.plain_values import Loadable


@dataclass(frozen=True)
class Rejection(Loadable):
    """Which classes of a long list are decoded to the end, when testing; as it stands here, all of them.

    A class that is given up gets the score 0. It is faster, and no longer exact: the others are decoded without what
    attention would have taken from those that were given up.

    Attributes:
        max_classes: of a list with more classes, at most so many, the likeliest, 1 or more; None: all. A list of so
            many classes or fewer is decoded whole.
        keep_top: and of those only the ones that are among so many likeliest at some position of the photo, 1 or more;
            None: that does not matter.
    """

    max_classes: int | None = None
    keep_top: int | None = None

    def __post_init__(self) -> None:
        for what, value in (("max-classes", self.max_classes), ("keep-top", self.keep_top)):
            if value is not None and value < 1:
                raise ConfigError(f"{what} {value} is out of range; give 1 or more")
        if self.keep_top is not None and self.max_classes is None:
            raise ConfigError(
                f"keep-top {self.keep_top} needs a bound on the classes; give max-classes too, such as 64"
            )

    def applies(self, count: int) -> bool:
        """Whether any of so many classes may be given up."""
        return self.max_classes is not None and count > self.max_classes


def rejection_of(max_classes: str | None, keep_top: int | None) -> Rejection | None:
    """Reads --max-classes, a number or "all", and --keep-top; None: neither was given.

    Raises:
        ConfigError: a value is out of range, or --keep-top stands alone.
    """
    if max_classes is None:
        return None if keep_top is None else Rejection(None, keep_top)
    word = max_classes.strip().lower()
    if word == "all":
        return Rejection(None, keep_top)
    if not word.isdecimal():
        raise ConfigError(f"max-classes {max_classes!r} is no number of classes; give one such as 64, or all")
    return Rejection(int(word), keep_top)
