"""What is written of a block: a Parquet table with one row a picture, whether it could be read or not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from dpseg.errors import OutputError
from dpseg.result import Segmentation

Row = dict[str, Any]
"""One picture: key; width and height in pixels; error: why it could not be read, else None; classes: what was found,
largest first, each with name, index, area, a share of the picture in (0, 1], confidence in [0, 1], and mask, in COCO's
compressed run lengths, or None where masks are not wanted. width, height and classes are None where there is an error.
"""


def row_of(key: str, result: Segmentation, masks: bool) -> Row:
    """Returns the row of a picture.

    Args:
        key: its name.
        result: what was found in it.
        masks: write the masks too.
    """
    height, width = result.labels.shape
    counts = {}
    if masks:
        annotations = result.to_coco()["annotations"]
        counts = {entry["category_id"] - 1: entry["segmentation"]["counts"] for entry in annotations}
    classes = [
        {
            "name": name,
            "index": (index := result.names.index(name)),
            "area": area,
            "confidence": result.confidences[name],
            "mask": counts.get(index),
        }
        for name, area in result.areas.items()
    ]
    return {"key": key, "width": width, "height": height, "error": None, "classes": classes}


def broken_row(key: str, error: Exception) -> Row:
    """Returns the row of a picture that could not be read."""
    return {"key": key, "width": None, "height": None, "error": str(error), "classes": None}


def encode_rows(rows: Sequence[Row]) -> bytes:
    """Returns rows as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pa.struct(
        [
            ("name", pa.string()),
            ("index", pa.int32()),
            ("area", pa.float64()),
            ("confidence", pa.float64()),
            ("mask", pa.string()),
        ]
    )
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("error", pa.string()),
            ("classes", pa.list_(found)),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def decode_errors(data: bytes, name: str) -> list[tuple[str, str | None]]:
    """Reads the keys and the errors of a Parquet file.

    Args:
        data: what `encode_rows` returned.
        name: what to call it in an error.

    Returns:
        For each picture its key, and why it could not be read; None: it could.

    Raises:
        OutputError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data), columns=["key", "error"])
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{name}: is damaged; delete it and run the same command again") from error
    return [(row["key"], row["error"]) for row in table.to_pylist()]
