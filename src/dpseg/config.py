"""Frozen dataclasses that describe a model, how it refines, and an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dpseg.errors import ConfigError
from dpseg.matching import Matching
from dpseg.plain_values import Loadable
from dpseg.rejection import Rejection

EncoderName = Literal["lite", "base", "large", "tiny"]
Fusion = Literal["average", "text", "visual", "cost_average", "cost_concat"]
Guidance = Literal["visual234", "visual2", "none", "upsampled", "cost_chain"]
Spatial = Literal["hybrid_dilated", "depthwise9"]
FeaturePrompts = Literal["off", "blend", "regress"]
"""What classes with words and no pictures get from banks: nothing ("off"); the pictures of names that mean nearly the
same ("blend"); and, where no name does, what a regression on the banks makes of the word ("regress")."""

Refine = bool | Literal["sequence"] | None
"""Whether Inference II runs, or prompts are carried from photo to photo; None: as the model's config says."""

Context = Literal["keep", "blur", "mean"]
"""What surrounds the thing in the crop of a reference: as it is, blurred, or the mean colour."""


@dataclass(frozen=True)
class ModelConfig(Loadable):
    """One DPSeg model. Everything that changes a tensor's shape or meaning is here.

    Attributes:
        encoder: which encoder; "lite" ships, "base" and "large" are CLIP ConvNeXt, "tiny" is random, for tests.
        image_size: side in pixels of the encoder's input: the square's, or the shorter side when `keep_aspect`.
        keep_aspect: keep the photo's proportions (lite) or stretch it to a square (SED's protocol).
        shortest_edge: the photo's shorter side is first brought to so many pixels, and the result to the input size
            without averaging (SED's protocol); None: at once, with averaging.
        templates: M, prompts a category, 1 to 80.
        fusion: how T and V meet: averaged as embeddings (the paper), one of them alone, or as two cost volumes that are
            averaged or concatenated (ablations).
        guidance: which visual cost volumes guide the decoder: F_v^{2,3,4} (the paper), F_v^2 alone, none, or an
            upsampled F_c in their place (ablations), or F_c through a chain of transposed convolutions (SED).
        spatial: the decoder's block that looks at a category's surroundings: hybrid dilated convolution (the paper) or
            a depthwise 9 x 9 convolution (SED).
        widths: channels of a category's embedding: at the cost volume, then after each decoder stage.
        image_widths: channels to which E_4, E_3, E_2 are projected, one a stage.
        heads: heads of the attention across categories.
        train_pool: side of the average pooling before that attention in training; testing uses 1 (SED).
        logit_scale: when above 0, the decoder's output is added to `logit_scale * cos(E, R)`, and its last layer starts
            at zero, so that an untrained model equals the plain cosine. 0: the paper's decoder.
        auxiliary_heads: each decoder stage has a head that predicts from its input, for an auxiliary loss and early
            rejection of categories (SED).
        resize_scores: a pixel's label is the category of the largest resized score, the logits' sigmoid (SED's
            protocol), not of the largest resized logit.
        mirrored_scales: when testing, the photo is also encoded mirrored at these multiples of its input size, and the
            logits are averaged; none: it is seen once.
        refine: whether Inference II runs where nobody says.
        decode_classes: only so many categories, those with the best maximum of F_c, are decoded; None: all.
        presence: when above 0, labels prefer classes of which the photo seems to show much: logits gain this times the
            log of a class's mean softmax over the photo, when classes compete; scores stay as they are. Not with
            `resize_scores`.
        tune_encoder: the image encoder is fine-tuned, so the frozen visual prompt encoder keeps weights of its own.
        text_names: names on which lite's trained text residual stands.
        weights: tag or path of the encoder's pretrained weights; None: the encoder's own default; "random": none.
        matching: how prompts are compared with a photo, when testing.
        rejection: which categories of a long list are given up early, when testing: by the auxiliary heads before each
            decoder stage; in a model without them by F_c, in place of `decode_classes`.
    """

    encoder: EncoderName = "base"
    image_size: int = 768
    keep_aspect: bool = False
    shortest_edge: int | None = None
    templates: int = 80
    fusion: Fusion = "average"
    guidance: Guidance = "visual234"
    spatial: Spatial = "hybrid_dilated"
    widths: tuple[int, ...] = (128, 64, 32, 16)
    image_widths: tuple[int, ...] = (32, 16, 8)
    heads: int = 4
    train_pool: int = 2
    logit_scale: float = 0.0
    auxiliary_heads: bool = False
    resize_scores: bool = False
    mirrored_scales: tuple[float, ...] = ()
    refine: bool = True
    decode_classes: int | None = None
    presence: float = 0.0
    tune_encoder: bool = True
    text_names: int = 0
    weights: str | None = None
    matching: Matching = field(default_factory=Matching)
    rejection: Rejection = field(default_factory=Rejection)

    def __post_init__(self) -> None:
        if not self.presence >= 0:
            raise ConfigError(f"presence {self.presence} is out of range; give a number from 0 on")
        # The hub's mixin first makes one whose `matching` is still a dict.
        adjusted = isinstance(self.matching, Matching) and self.matching.logit_adjustment > 0
        if (self.presence or adjusted) and self.resize_scores:
            raise ConfigError(
                "presence and matching.logit_adjustment do not go with resize_scores; leave one of the two out"
            )


@dataclass(frozen=True)
class RefineConfig:
    """When a region of Inference I is good enough to become a prompt of Inference II, and what is made of it.

    Attributes:
        min_area: it covers at least this fraction of the photo, in [0, 1].
        min_confidence: its mean score is at least this, in [0, 1].
        max_regions: so many regions of a class at most, the largest first: as many crops.
        core: only this fraction of its pixels, the surest, counts and becomes the prompt, in (0, 1]; 1: all.
        features: a crop of it is encoded ("crop", as in the paper), or the frozen features of the whole photo are
            averaged over it ("pooled").
        blend: weight in [0, 1] of what was found, beside the pictures that its class had; 1: it replaces them, as in
            the paper. Where there were none, what was found stands alone.
        keep: of a sequence, the weight in [0, 1) of what earlier photos showed of a class when another shows it.
    """

    min_area: float = 0.01
    min_confidence: float = 0.9
    max_regions: int = 3
    core: float = 1.0
    features: Literal["crop", "pooled"] = "crop"
    blend: float = 1.0
    keep: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.core <= 1 and 0 <= self.blend <= 1 and 0 <= self.keep < 1):
            raise ConfigError(
                f"core {self.core}, blend {self.blend}, keep {self.keep}: give a core above 0, a keep below 1, and all"
                " from 0 to 1"
            )


PromptKind = Literal["text", "bank", "pictures", "both"]


@dataclass(frozen=True)
class EvalConfig:
    """What is measured on a data set.

    Attributes:
        prompts: one row of the table each: words alone, words and the model's bank, reference pictures alone, or words
            and reference pictures.
        refine: Inference I alone, Inference II, or both; one row each.
        references: reference pictures a class, cut from photos outside the evaluated split.
        seed: which of them.
        ref_context: what surrounds the thing in them.
        ignore_background: leave pixels of line 0 of classes.txt out where it is "background"; else such pixels are
            right where no class scores `background`.
        background: threshold in [0, 1]; used when the background counts.
        size: the encoder's input size in pixels; None: the model's own.
        limit: only so many photos, evenly spread over the split; None: all.
        block: photos that are counted before their counts are written: what an interruption loses at most, 1 or more.
    """

    prompts: tuple[PromptKind, ...] = ("both",)
    refine: tuple[bool, ...] = (False, True)
    references: int = 3
    seed: int = 0
    ref_context: Context = "keep"
    ignore_background: bool = True
    background: float = 0.5
    size: int | None = None
    limit: int | None = None
    block: int = 16
