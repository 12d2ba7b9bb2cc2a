"""Pictures as strangers send them: broken ones are refused with a sentence, odd ones are taken."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dpseg.serving.pictures import open_mask
from support.pictures import encoded, halves
from support.served import COLOURS, PICTURES, post, refusal, send_colours

pytest_plugins = "support.served"


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says it is so large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    """A TIFF file that says it is so large."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 100)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 200


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 96, 3), np.uint8))
BROKEN = {
    "empty": (b"", 422),
    "text": (b"hello, this is no picture", 422),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", 422),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", 422),
    "pdf": (b"%PDF-1.4\n", 422),
    "icon": (encoded(NOISE, "ICO"), 422),
    "truncated PNG": (encoded(NOISE)[:9000], 422),
    "truncated JPEG": (encoded(NOISE, "JPEG")[:2000], 422),
    "truncated WebP": (encoded(NOISE, "WEBP")[:1000], 422),
    "truncated GIF": (encoded(NOISE, "GIF")[:3000], 422),
    "only a head": (encoded(NOISE, "JPEG")[:10], 422),
    "noise after a JPEG's head": (encoded(NOISE, "JPEG")[:200] + bytes(range(256)) * 8, 422),
    "bomb": (png_header(20_000, 20_000), 413),
    "bomb below Pillow's limit": (png_header(6_000, 6_000), 413),
    "TIFF bomb": (tiff_header(100_000, 100_000), 413),
    "short of pixels": (png_header(1_000, 1_000), 422),
}
FRAMES = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
CMYK = Image.new("CMYK", (64, 64), (0, 200, 200, 20))
SIXTEEN = Image.fromarray(np.full((64, 64), 40_000, np.uint16))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter
ODD = {
    "animated GIF": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), (64, 64)),
    "animated WebP": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), (64, 64)),
    "animated PNG": (encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), (64, 64)),
    "several pages": (encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), (64, 64)),
    "CMYK JPEG": (encoded(CMYK, "JPEG"), (64, 64)),
    "CMYK TIFF": (encoded(CMYK, "TIFF"), (64, 64)),
    "16-bit PNG": (encoded(SIXTEEN), (64, 64)),
    "16-bit TIFF": (encoded(SIXTEEN, "TIFF"), (64, 64)),
    "floats": (encoded(Image.fromarray(np.full((64, 64), 0.5, np.float32)), "TIFF"), (64, 64)),
    "one bit": (encoded(Image.new("1", (64, 64), 1)), (64, 64)),
    "palette": (encoded(NOISE.convert("P")), (96, 96)),
    "transparent": (encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), (64, 64)),
    "grey": (encoded(NOISE.convert("L"), "JPEG"), (96, 96)),
    "turned": (encoded(halves(128, 64), "JPEG", exif=EXIF), (64, 128)),
    "AVIF": (encoded(NOISE, "AVIF"), (96, 96)),
    "1 x 1": (encoded(Image.new("RGB", (1, 1))), (1, 1)),
    "1 x 300": (encoded(Image.new("RGB", (1, 300))), (1, 300)),
    "60000 x 1": (encoded(Image.new("RGB", (60_000, 1), "red")), (60_000, 1)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_refused(client: TestClient, name: str) -> None:
    data, status = BROKEN[name]
    sentence = refusal(send_colours(client, data), status)
    assert sentence.startswith("image: ")
    assert "/" not in sentence  # no path
    assert "BytesIO" not in sentence
    as_reference = post(client, COLOURS, files={**PICTURES, "red.png": data})
    # All references together may have more pixels than a photo, so that some bombs are read and found to be short.
    assert refusal(as_reference, as_reference.status_code).startswith("reference 'red.png': ")
    assert as_reference.status_code in (status, 422)


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_taken(client: TestClient, name: str) -> None:
    data, size = ODD[name]
    answer = send_colours(client, data)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["width"], answer.json()["height"]) == size
    picture = Image.open(io.BytesIO(send_colours(client, data, format="png").content))
    assert picture.size == size


def test_a_mask_of_a_lossy_format_counts_from_half_on() -> None:
    exact = Image.new("L", (90, 70))
    exact.paste(255, (13, 11, 51, 37))
    for data in (encoded(exact, "JPEG", quality=40), encoded(exact), encoded(exact.convert("1"))):
        assert np.array_equal(open_mask(data, "mask", (90, 70)), np.asarray(exact) > 0)
