"""Do names that training never saw lose by it? Labelled pictures of such names, untrained cosine against trained.

    python benchmarks/unseen_names.py DATA_ROOT

reads DATA_ROOT/exemplars/caltech/NAME/*.jpg (ten pictures of one object each) and leaves out every name that stands in
a classes.txt below DATA_ROOT. It counts the pictures in whose central half the right name, of all those names, covers
most pixels: prompted with words alone, without the bank, and with two pictures of each name that are not counted; by
themselves, and beside the 133 names of COCO, which training saw.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dpseg.data.vocabularies import load_vocabulary
from dpseg.pretrained import untrained
from dpseg.segmenter import Segmenter

COUNTED, SHOWN = slice(0, 2), slice(8, 10)


def unseen(root: Path) -> dict[str, list[Path]]:
    """Returns pictures by name, for names of no training set."""
    seen = {line.strip().lower() for file in root.glob("*/classes.txt") for line in file.read_text().splitlines()}
    folders = sorted(path for path in (root / "exemplars" / "caltech").iterdir() if path.is_dir())
    names = {folder.name.replace("_", " "): sorted(folder.glob("*.jpg")) for folder in folders}
    return {name: pictures for name, pictures in names.items() if name.lower() not in seen}


def share_right(segmenter: Segmenter, pictures: dict[str, list[Path]], show: bool, others: list[str]) -> float:
    """Returns the share of the counted pictures whose centre is named right among all names, Inference I."""
    names = [*pictures, *others]
    references = {name: [*files[SHOWN]] for name, files in pictures.items()} if show else None
    prompts = segmenter.prompts(names, references, bank=False)
    right = total = 0
    for index, files in enumerate(pictures.values()):
        for file in files[COUNTED]:
            labels = segmenter(file, prompts=prompts, refine=False).labels
            height, width = labels.shape
            centre = labels[height // 4 : height - height // 4, width // 4 : width - width // 4]
            right += int(np.bincount(centre.ravel(), minlength=len(names)).argmax()) == index
            total += 1
    return right / total


def main(root: Path, model: str = "dpseg-lite") -> None:
    """Prints a Markdown table."""
    pictures = unseen(root)
    trained = Segmenter.from_pretrained(model)
    plain = Segmenter(untrained(trained.model))
    print(f"{len(pictures)} unseen names, {sum(len(files[COUNTED]) for files in pictures.values())} pictures\n")
    print("| prompts | beside | untrained | trained |\n|---|---|---|---|")
    coco = [name for name in load_vocabulary("coco") if name not in pictures]
    for others, beside in (([], "no others"), (coco, "COCO's names")):
        for show, label in ((False, "text"), (True, "both")):
            shares = [f"{100 * share_right(segmenter, pictures, show, others):.1f}" for segmenter in (plain, trained)]
            print(f"| {label} | {beside} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
