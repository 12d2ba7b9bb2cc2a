"""Class names, their synonyms, and the templates that make prompts of them.

The 80 templates are those that CLIP was evaluated with on ImageNet (Radford et al., ICML 2021, published with its
code); SED and the paper use all of them. The paper's ablation has 1, 10, 20, 40 and 80 of them but does not say which.
Here the smaller selections are nested, each the beginning of the next, so that a step in the ablation only ever adds
templates:

- 1: the plain sentence.
- 10 (`FRAMING`): plus how a thing stands in an ordinary photo: which, how many, how large, how near, how well shown.
  This is what differs between the objects of one scene.
- 20 (`CONDITION`): plus the state of the photo or of the thing: light, blur, noise, dirt.
- 40 (`VARIANTS`): plus "the", "my" and a few adjectives for the same photos. All 40 are still sentences about photos,
  and photos are what is segmented.
- 80: plus the rest of the list: drawings, toys, sculptures, games and the last variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpseg.errors import ConfigError, PromptError

TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""All 80, in CLIP's order, wrong articles included. `templates(80)` holds the same in another order."""

FRAMING = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
    "a photo of a large {}.",
    "a photo of a small {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a bad photo of a {}.",
)

CONDITION = (
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a pixelated photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a black and white photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a photo of a hard to see {}.",
)

VARIANTS = (
    "a photo of the large {}.",
    "a photo of the small {}.",
    "a close-up photo of the {}.",
    "a cropped photo of the {}.",
    "a good photo of the {}.",
    "a bad photo of the {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a blurry photo of the {}.",
    "a low resolution photo of the {}.",
    "a pixelated photo of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a black and white photo of the {}.",
    "a photo of the clean {}.",
    "a photo of the dirty {}.",
    "a photo of the hard to see {}.",
    "a photo of my {}.",
    "a photo of a nice {}.",
    "a photo of a cool {}.",
    "a photo of a weird {}.",
)


@dataclass(frozen=True)
class ClassName:
    """A class in words.

    Attributes:
        name: how it is shown.
        synonyms: at least one; all its names, the shown one first.
    """

    name: str
    synonyms: tuple[str, ...]


def parse_class(text: str) -> ClassName:
    """Reads one class: "couch, sofa" is a class shown as "couch" that is also called "sofa".

    Spaces are tidied, and a synonym that is repeated counts once, whatever its case.

    Raises:
        PromptError: There is no name in it.
    """
    if not isinstance(text, str):
        raise PromptError(f"class {text!r} is not text; write it in quotes, like 'cat' or 'couch, sofa'")
    words = [" ".join(part.split()) for part in text.split(",")]
    synonyms = {word.casefold(): word for word in reversed(words) if word}  # the first spelling is kept
    ordered = tuple(reversed(list(synonyms.values())))
    if not ordered:
        raise PromptError(f"class {text!r} has no name; write words, like 'cat' or 'couch, sofa'")
    return ClassName(ordered[0], ordered)


def parse_classes(texts: Sequence[str]) -> list[ClassName]:
    """Reads K classes, in their order.

    Raises:
        PromptError: There are none, one is empty, or two are shown by the same name.
    """
    if isinstance(texts, str):
        raise PromptError(
            f"the classes are one string, {texts!r}; give a list of strings, one a class, like ['cat', 'dog']"
        )
    classes = [parse_class(text) for text in texts]
    if not classes:
        raise PromptError("no classes given; name at least one, like 'cat' or 'couch, sofa'")
    seen: set[str] = set()
    for entry in classes:
        if entry.name.casefold() in seen:
            raise PromptError(f"class {entry.name!r} is given twice; keep one, and put other names after a comma")
        seen.add(entry.name.casefold())
    return classes


def templates(count: int) -> tuple[str, ...]:
    """Returns M nested templates, the plain "a photo of a {}." first.

    Args:
        count: M, 1 to 80; the ablation's selections are 1, 10, 20, 40 and 80.

    Raises:
        ConfigError: M is out of range.
    """
    if not 1 <= count <= len(TEMPLATES):
        raise ConfigError(
            f"{count} templates: there are 1 to {len(TEMPLATES)}; the usual selections are 1, 10, 20, 40, 80"
        )
    photos = FRAMING + CONDITION + VARIANTS
    rest = tuple(template for template in TEMPLATES if template not in photos)
    return (photos + rest)[:count]


def expand(class_name: ClassName, sentences: Sequence[str]) -> list[list[str]]:
    """Fills M templates with a class's names.

    Args:
        class_name: the class.
        sentences: M templates with one "{}" each.

    Returns:
        M lists, each with one text a synonym; the embedding of a template is the average over its list.
    """
    return [[sentence.replace("{}", synonym) for synonym in class_name.synonyms] for sentence in sentences]
