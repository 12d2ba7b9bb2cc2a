"""The class lists of the usual benchmarks, and the user's own, one class a line.

A line is a class, its synonyms after commas; the first name is shown. Empty lines and lines that begin with "#" do not
count, so that class k is the k-th line that does. The lists keep the benchmarks' order and classes; names that cannot
be read ("floor-wood", "tvmonitor") are written out, and many synonyms are ours.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dpseg.errors import DataError, ModelNotFoundError, PromptError, did_you_mean
from dpseg.prompts.text import parse_classes

VOCABULARIES = {
    "coco": "COCO panoptic, 133 things and stuff",
    "coco80": "COCO, 80 things",
    "cocostuff171": "COCO-Stuff, 80 things and 91 stuff classes",
    "ade150": "ADE20K, 150 classes (A-150)",
    "ade847": "ADE20K, 847 classes (A-847)",
    "pc59": "PASCAL-Context, 59 classes (PC-59)",
    "pc459": "PASCAL-Context, 459 classes (PC-459)",
    "voc20": "PASCAL VOC 2012, 20 classes without background (PAS-20)",
}
"""Name -> what it is."""


def load_vocabulary(name_or_file: str | Path) -> list[str]:
    """Returns K classes as text, synonyms after commas.

    Args:
        name_or_file: a key of `VOCABULARIES`, in any case, or a UTF-8 text file with one class a line.

    Raises:
        ModelNotFoundError: There is no such vocabulary and no such file.
        DataError: The file cannot be read, or it is not a list of distinct classes.
    """
    name = str(name_or_file).strip()
    if name.lower() in VOCABULARIES:
        return read_classes(resources.files("dpseg.data").joinpath("names", f"{name.lower()}.txt").read_text("utf-8"))
    path = Path(name_or_file).expanduser()
    if not path.exists():
        looks_like_file = path.suffix != "" or len(path.parts) > 1
        what = f"no vocabulary file {name}" if looks_like_file else f"no vocabulary and no file is called {name!r}"
        raise ModelNotFoundError(f"{what}; {did_you_mean(name, VOCABULARIES)}")
    try:
        classes = read_classes(path.read_text("utf-8-sig"))
        parse_classes(classes)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(
            f"{path}: cannot be read as a vocabulary ({reason}); give a text file, one class a line"
        ) from error
    except PromptError as error:
        raise DataError(f"{path}: {error}") from error
    return classes


def read_classes(text: str) -> list[str]:
    """Returns the lines that are classes: those that are neither empty nor begin with "#"."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
