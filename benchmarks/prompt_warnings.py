"""How often are the warnings of `dpseg prompts show` right? With pictures and names of which it is known.

    python benchmarks/prompt_warnings.py DATA_ROOT

reads ten pictures a name of DATA_ROOT/exemplars/caltech and, of the training photos of four sets below DATA_ROOT, the
ten largest objects of each class.

- Pairs of classes of one set are prompted by words, by three pictures, and by both; the other pictures of the two go to
  the prompt with the larger cosine. Printed is the share that goes right, of pairs above and below the bound.
- Of 3, 5 and 8 pictures of a class, drawn at random, each is judged; then one gives way to a picture of another class.
- Names of vocabularies, and random words, are cut by the tokenizers of MiniLM and of CLIP.
"""

from __future__ import annotations

import random
import string
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from dpseg.data.benchmarks import open_dataset
from dpseg.data.objects import cut_objects, find_candidates
from dpseg.data.picture_features import PictureEncoder, joint_vectors
from dpseg.data.pictures import NamedPicture, folder_pictures
from dpseg.data.vocabularies import load_vocabulary
from dpseg.explain.prompt_warnings import ALIKE, UNLIKE, is_unknown
from dpseg.model.prompt_encoding import text_prompts
from dpseg.prompts.text import parse_class, parse_classes, templates
from dpseg.segmenter import Segmenter

SETS = "coco_things", "iot_boards", "clothing", "building_facade"
PICTURES, SHOWN = 10, 3
CONSONANTS = "bcdfghjklmnpqrstvwxz"

Vectors = dict[str, Tensor]
"""V of a class's pictures, (N, D)."""


def objects(folder: Path) -> list[NamedPicture]:
    """Returns the largest objects of each class of the training photos."""
    dataset = open_dataset(str(folder), None, "train")
    found = find_candidates(dataset, PICTURES, [], lambda: None, set(range(1, len(dataset.class_names))))
    return [picture for value in found for picture in cut_objects(dataset, value, found[value], "keep")]


def vectors_of(encoder: PictureEncoder, pictures: list[NamedPicture]) -> Vectors:
    """Encodes pictures, those of each class together."""
    rows: dict[str, list[Tensor]] = {}
    for start in range(0, len(pictures), 16):
        part = pictures[start : start + 16]
        features = encoder.encode([encoder.read(picture) for picture in part], cached=True)
        for picture, vector in zip(part, joint_vectors(encoder.encoder, features), strict=True):
            rows.setdefault(picture.name, []).append(vector)
    return {name: torch.stack(vectors) for name, vectors in rows.items()}


def pairs(words: Vectors, pictures: Vectors) -> Iterator[tuple[float, float]]:
    """Yields the cosine of the prompts of each pair of classes, and the share of their pictures that goes right."""
    enough = [name for name, vectors in pictures.items() if len(vectors) > SHOWN + 1]
    for kind in ("text", "pictures", "both"):
        for names in combinations(enough, 2):
            prompts = []
            for name in names:
                visual = F.normalize(pictures[name][:SHOWN].mean(dim=0), dim=0)
                parts = {"text": words[name][0], "pictures": visual, "both": words[name][0] + visual}
                prompts.append(F.normalize(parts[kind], dim=0))
            towards = [pictures[name][SHOWN:] @ (prompts[0] - prompts[1]) for name in names]
            right = (float((towards[0] > 0).float().mean()) + float((towards[1] < 0).float().mean())) / 2
            yield float(prompts[0] @ prompts[1]), right


def odd(vectors: Tensor) -> list[bool]:
    """Judges the pictures of a class, (N, D), as `dpseg.explain.prompts` does."""
    cosines = (F.normalize(vectors.sum(dim=0) - vectors, dim=-1) * vectors).sum(dim=-1)
    middle = cosines.quantile(0.5)
    flags: list[bool] = ((cosines < UNLIKE * middle) & (middle > 0)).tolist()
    return flags


def print_odd(sets: list[Vectors]) -> None:
    """Prints how many true pictures and how many others are called odd."""
    draw = np.random.default_rng(0)
    for count in (3, 5, 8):
        true: list[bool] = []
        other: list[bool] = []
        for pictures in sets:
            names = [name for name, vectors in pictures.items() if len(vectors) >= count]
            for name in names:
                vectors = pictures[name][draw.permutation(len(pictures[name]))[:count]]
                stranger = pictures[draw.choice([one for one in names if one != name])]
                true += odd(vectors)
                other.append(odd(torch.cat([stranger[draw.integers(len(stranger))][None], vectors[1:]]))[0])
        print(f"odd pictures, {count} a class: {np.mean(true):.1%} of true ones, {np.mean(other):.1%} of others")


def print_unknown(segmenter: Segmenter, caltech: list[str]) -> None:
    """Prints which share of names and of made-up words is called unknown."""
    draw = random.Random(0)
    lists = {name: [parse_class(line).name for line in load_vocabulary(name)] for name in ("coco", "pc459", "ade847")}
    lists["caltech"] = caltech
    lists["lite's bank"] = list(segmenter.bank.names) if segmenter.bank is not None else []
    for letters in (4, 7):
        lists[f"{letters} letters"] = ["".join(draw.choices(string.ascii_lowercase, k=letters)) for _ in range(300)]
    lists["spoken"] = [
        "".join(draw.choice(CONSONANTS) + draw.choice("aeiou") for _ in range(3)) + draw.choice(CONSONANTS)
        for _ in range(300)
    ]
    lists["codes"] = [f"{draw.randrange(100, 99999)}-{draw.choice(string.ascii_lowercase)}" for _ in range(150)]
    lists["codes"] += [
        f"{''.join(draw.choices(string.ascii_uppercase, k=2))}{draw.randrange(10, 9999)}" for _ in range(150)
    ]
    clip = open_clip.tokenizer.SimpleTokenizer()
    cutters: dict[str, Callable[[str], tuple[str, ...]]] = {
        "MiniLM": segmenter.model.encoder.word_pieces,
        "CLIP": lambda word: tuple(clip.decoder[token].removesuffix("</w>") for token in clip.encode(word)),
    }
    for name, pieces in cutters.items():
        shares = {
            kind: np.mean([any(is_unknown(pieces(word)) for word in text.split()) for text in texts])
            for kind, texts in lists.items()
            if texts
        }
        print(f"unknown words, {name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items()))


def main(root: Path) -> None:
    """Prints the figures that stand in docs/prompts.md."""
    segmenter = Segmenter.from_pretrained("dpseg-lite", "cpu")
    encoder = PictureEncoder(segmenter.model.encoder, segmenter.cache)
    sources = [folder_pictures(root / "exemplars" / "caltech"), *(objects(root / name) for name in SETS)]
    sets = [vectors_of(encoder, pictures) for pictures in sources]
    found: list[tuple[float, float]] = []
    for pictures in sets:
        words = text_prompts(segmenter.model.encoder, parse_classes(list(pictures)), templates(1), segmenter.cache)
        found += pairs(dict(zip(pictures, words.embeddings, strict=True)), pictures)
    cosines, right = np.array(found).T
    above = cosines >= ALIKE
    for label, some in (("above", above), ("below", ~above)):
        share = np.mean(right[some] >= 0.9)
        print(
            f"{some.sum()} pairs {label} the bound: {right[some].mean():.1%} go right; {share:.0%} of pairs above 90 %"
        )
    confused = right < 0.6
    print(f"{confused.sum()} pairs below 60 %, {np.mean(~above[confused]):.0%} of them below the bound")
    print_odd(sets)
    print_unknown(segmenter, list(sets[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
