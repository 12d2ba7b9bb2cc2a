"""Loads the API as eight programs at once would, and compares it with the same model in a plain loop.

    python benchmarks/api_load.py --seconds 300

The loop segments the same photos from the same bytes, one after the other, in a process of its own; half of it runs
before the load and half after it, because other work on the machine changes what it can do. The load is
`dpseg serve --api` and clients that each send their next photo when the answer to the last is there. It prints
latencies, throughput and the ratio to the loop's, the same in CPU seconds, which other work on the machine disturbs
less, and the server's memory: the medians over each tenth of the time, because it goes up and down with what is in
work. It fails where a request failed, the ratio is below 0.9 or the last tenth's memory is more than a tenth above the
first's.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
NAMES = (
    "person", "bicycle", "car", "cat", "dog", "chair", "couch, sofa", "dining table", "cup, mug", "spoon",
    "plate", "book", "clock", "wall", "floor", "window", "tree", "grass", "sky", "road",
)  # fmt: skip
SIZES = ((640, 480), (480, 640), (800, 600), (500, 375), (640, 640))
CPU, SEGMENTED = "process_cpu_seconds_total", "dpseg_batch_photos_sum"
WARM_UP = 2.0  # seconds at the beginning that do not count

LOOP = """
import sys, time
from io import BytesIO
from pathlib import Path
from PIL import Image
from dpseg import Segmenter
from dpseg.memory import release_free_memory
seconds, folder, names = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
photos = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
segmenter = Segmenter.from_pretrained("dpseg-lite")
prompts = segmenter.prompts(names)
for photo in photos:
    segmenter(Image.open(BytesIO(photo)), prompts=prompts)
start, cpu, count = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - start < seconds:
    segmenter(Image.open(BytesIO(photos[count % len(photos)])), prompts=prompts)
    count += 1
    if count % 4 == 0:
        release_free_memory()
print(count / (time.perf_counter() - start), (time.process_time() - cpu) / count)
"""


class Client(threading.Thread):
    """A program that sends photo after photo over one connection.

    Attributes:
        latencies: (time of the answer, seconds it took), of each photo.
        refused: how often there was no room; it came again when it was told to.
        errors: what went wrong.
    """

    def __init__(self, port: int, forms: list[tuple[bytes, str]], first: int, end: float) -> None:
        super().__init__(daemon=True)
        self.port, self.forms, self.number, self.end = port, forms, first, end
        self.latencies: list[tuple[float, float]] = []
        self.refused, self.errors = 0, list[str]()

    def run(self) -> None:
        """Sends until the time is over."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while time.perf_counter() < self.end:
            body, kind = self.forms[self.number % len(self.forms)]
            self.number += 1
            start = time.perf_counter()
            try:
                connection.request("POST", "/v1/segment", body, {"Content-Type": kind})
                response = connection.getresponse()
                answer = response.read()
                if response.status in (429, 503):
                    self.refused += 1
                    self.number -= 1
                    connection.close()
                    time.sleep(min(float(response.headers["Retry-After"]), max(0.0, self.end - time.perf_counter())))
                    continue
                if response.status != 200 or not json.loads(answer)["classes"]:
                    self.errors.append(f"{response.status}: {answer[:200]!r}")
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.errors.append(repr(error))
                connection.close()
            else:
                self.latencies.append((time.perf_counter(), time.perf_counter() - start))
        connection.close()


def photos(folder: Path, count: int) -> list[bytes]:
    """Writes JPEG photos of several sizes, and returns their bytes."""
    sources = sorted((ROOT / "examples").glob("*.jpg"))
    made = []
    for number in range(count):
        buffer = BytesIO()
        with Image.open(sources[number % len(sources)]) as source:
            source.convert("RGB").resize(SIZES[number % len(SIZES)]).save(buffer, "JPEG", quality=90)
        (folder / f"{number:03}.jpg").write_bytes(buffer.getvalue())
        made.append(buffer.getvalue())
    return made


def form(photo: bytes) -> tuple[bytes, str]:
    """Returns the body and the content type of a request."""
    boundary = uuid.uuid4().hex
    prompts = json.dumps({"classes": NAMES})
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="prompts"\r\n\r\n{prompts}\r\n--{boundary}\r\n'
    head += 'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + photo + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def loop(seconds: float, folder: Path) -> tuple[float, float]:
    """Runs the plain loop in a process of its own; returns its photos a second, and its CPU seconds a photo."""
    command = [sys.executable, "-c", LOOP, str(seconds), str(folder), *NAMES]
    rate, cpu = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return float(rate), float(cpu)


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Starts `dpseg serve --api`, yields its port, and stops it."""
    command = [str(Path(sys.executable).parent / "dpseg"), "serve", "--api", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+);", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        yield int(found.group(1))
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    if status:
        raise SystemExit(f"the server ended with status {status}")


def figure(port: int, name: str) -> float:
    """Returns one of the server's figures."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, flags=re.MULTILINE).group(1))  # type: ignore[union-attr]


def load(seconds: float, clients: int, forms: list[tuple[bytes, str]]) -> dict[str, Any]:
    """Runs the load and returns its figures."""
    with server() as port:
        for body in forms[: len(SIZES)]:  # what is prepared at the first use
            once = Client(port, [body], 0, 0.0)
            once.end = time.perf_counter() + 0.001
            once.run()
        start = time.perf_counter()
        running = [Client(port, forms, 7 * number, start + WARM_UP + seconds) for number in range(clients)]
        for client in running:
            client.start()
        time.sleep(WARM_UP)
        memory: list[tuple[float, float]] = []
        cpu, segmented = (figure(port, name) for name in (CPU, SEGMENTED))
        first = time.perf_counter()
        while time.perf_counter() < start + WARM_UP + seconds:
            memory.append((time.perf_counter() - first, figure(port, "process_resident_memory_bytes")))
            time.sleep(min(1.0, seconds / 50))
        for client in running:
            client.join()
        cpu = (figure(port, CPU) - cpu) / (figure(port, SEGMENTED) - segmented)
    tenths = [
        statistics.median(value for at, value in memory if part <= 10 * at / seconds < part + 1) for part in range(10)
    ]
    counted = [(at, took) for client in running for at, took in client.latencies if at >= first]
    took = sorted(value for _, value in counted)
    errors = [error for client in running for error in client.errors]
    for error in errors[:5]:
        print(error, file=sys.stderr)
    figures = {f"p{share}, s": took[min(len(took) - 1, len(took) * share // 100)] for share in (50, 95, 99)}
    figures |= {"photos": len(took), "errors": len(errors), "refused": sum(client.refused for client in running)}
    figures |= {"photos a second": len(took) / (max(at for at, _ in counted) - first)}
    figures |= {"CPU seconds a photo": cpu}
    figures |= {"memory in the first tenth, MB": tenths[0] / 1e6, "memory in the last tenth, MB": tenths[-1] / 1e6}
    figures |= {"largest memory, MB": max(value for _, value in memory) / 1e6}
    return figures | {"memory in each tenth, MB": ", ".join(f"{value / 1e6:.0f}" for value in tenths)}


def main() -> int:
    """Measures, prints the table, and returns the exit status."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="of the load")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        made = photos(Path(name), 15)
        half = max(5.0, options.seconds / 4)
        loops = [loop(half, Path(name))]
        figures = load(options.seconds, options.clients, [form(photo) for photo in made])
        loops.append(loop(half, Path(name)))
    figures["plain loop, photos a second"] = sum(rate for rate, _ in loops) / 2
    figures["plain loop, CPU seconds a photo"] = sum(cpu for _, cpu in loops) / 2
    figures["ratio"] = figures["photos a second"] / figures["plain loop, photos a second"]
    figures["ratio of CPU seconds"] = figures["plain loop, CPU seconds a photo"] / figures["CPU seconds a photo"]
    print("| | |\n|---|---|")
    for label, value in figures.items():
        print(f"| {label} | {value:.3f} |" if isinstance(value, float) else f"| {label} | {value} |")
    print(
        f"\n{options.clients} clients, {options.seconds:g} s, {os.cpu_count()} cores; threads:",
        os.environ.get("OMP_NUM_THREADS", "all"),
    )
    print("plain loop before and after, photos a second:", ", ".join(f"{rate:.3f}" for rate, _ in loops))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    grown = figures["memory in the last tenth, MB"] > 1.1 * figures["memory in the first tenth, MB"]
    return int(bool(figures["errors"]) or figures["ratio"] < 0.9 or grown)


if __name__ == "__main__":
    sys.exit(main())
