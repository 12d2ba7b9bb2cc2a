"""How prompts are compared with a photo: as in the paper, or in ways that tell classes apart that look alike."""

from __future__ import annotations

from dataclasses import dataclass

from dpseg.errors import ConfigError, did_you_mean
from dpseg.plain_values import Loadable


@dataclass(frozen=True)
class Matching(Loadable):
    """How prompts are compared with a photo, when testing; as it stands here, as in the paper.

    Attributes:
        contrast: weight of what tells the pictures of a class from those of the other classes, beside T and V, 0 or
            more.
        turned: for that, pictures are also seen turned by a quarter, a half and three quarters, for things that lie any
            way round; encoding them takes four times as long.
        whole: weight of what the photo shows as a whole, beside what each position of it shows, 0 or more.
        weigh_words: of classes that have pictures, words count as far as they rank those pictures better than chance.
        prior: beside few pictures, trained words count for more. Of a class with n reference pictures, V weighs n where
            T weighs n + prior * f, with f in [0, 1] for how well training knew the words (`Encoder.familiarity`); what
            a bank has counts as one picture; 0 or more.
        logit_adjustment: times the log frequency of a class's words in the training's masks (`Encoder.log_frequency`)
            is taken from its logits when classes compete for labels, for what training showed often is found too often
            (post-hoc logit adjustment: Menon et al., Long-tail learning via logit adjustment, ICLR 2021); 0 or more.
            Scores stay as they are, and so do classes without words; those with pictures are adjusted as far as
            training knew their words.
    """

    contrast: float = 0.0
    turned: bool = False
    whole: float = 0.0
    weigh_words: bool = False
    prior: float = 0.0
    logit_adjustment: float = 0.0

    def __post_init__(self) -> None:
        for name in ("contrast", "whole", "prior", "logit_adjustment"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"matching.{name} {getattr(self, name)} is out of range; give a number from 0 on")


MATCHINGS = {"plain": Matching(), "alike": Matching(contrast=3.0, turned=True, whole=4.0, weigh_words=True)}
"""Name -> how prompts are compared: as in the paper, or for classes that look alike, with few things in a photo."""


def matching_of(text: str) -> Matching:
    """Reads --match.

    Raises:
        ConfigError: the word is unknown.
    """
    word = text.strip().lower()
    if word not in MATCHINGS:
        raise ConfigError(f"match {text!r} is unknown; {did_you_mean(text, MATCHINGS)}")
    return MATCHINGS[word]
