"""Measure two claims of docs/pictures.md: all cores decode pictures, and a training step does not wait for the disk.

    python tests/benchmarks/pictures.py            # a minute, 700 MB of temporary files; Linux

The decoding test reads 600 JPEG files of 500 x 400 pixels as 64 x 64, alternately on one core and on all. The step
reads 256 pictures of 64 x 64 and then sleeps 20 ms, as a CPU does while a GPU computes; the file leaves the page cache
before each run.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":                      # for the package minicl
    sys.path[:1] = map(str, Path(__file__).resolve().parents[1:3])

from minicl.backend import available_cores  # noqa: E402
from minicl.data import Batches, ImageData, Prefetch, loader  # noqa: E402
from minicl.data.pictures import pillow  # noqa: E402

COUNT, SIZE, STEP, BATCH, STEPS = 600, 64, 0.02, 256, 100


def write_jpegs(folder):
    """Write pictures of smooth colours and noise: files of about 100 kB, as a camera's of this size."""
    Image = pillow()
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        colours = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8)).resize((500, 400), Image.Resampling.BICUBIC)
        pixels = np.asarray(colours) + rng.normal(0, 12, (400, 500, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k}.jpg", quality=90)


def decoding(folder, repeats=5):
    """{cores: [(wall seconds, CPU seconds) of each repeat]} of decoding the files."""
    write_jpegs(folder)
    mine = os.sched_getaffinity(0)
    times = {1: [], available_cores(): []}
    for repeat in range(repeats):
        for cores in times:
            os.environ["MINICL_CACHE"] = str(folder / f"cache {repeat} {cores}")
            os.sched_setaffinity(0, sorted(mine)[:cores])
            start = time.perf_counter(), time.process_time()
            ImageData.from_folder(folder, SIZE, log=lambda line: None)
            times[cores].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    os.sched_setaffinity(0, mine)
    return times


def waiting(file, asks, n=50_000):
    """Prefetch.waiting over the first steps with a cold file, which is written if it does not exist."""
    if not file.exists():
        np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8).tofile(file)
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    ranges = loader.mapped_ranges
    loader.mapped_ranges = loader.mapped_ranges if asks else lambda images, ids: ()
    images = Prefetch(np.memmap(file, np.uint8, "r", shape=(n, SIZE, SIZE, 3)), Batches(n, BATCH))
    for step in range(STEPS):
        images[step]
        time.sleep(STEP)
    loader.mapped_ranges = ranges
    return images.waiting


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        median = statistics.median
        (folder / "jpeg").mkdir()
        times = decoding(folder / "jpeg")
        for cores, pairs in times.items():
            seconds, cpu = map(median, zip(*pairs))
            print(f"decoding on {cores} cores: {COUNT / seconds:.0f} pictures a second, {1000 * cpu / COUNT:.1f} ms of CPU time each")
        one, more = ([seconds for seconds, _ in pairs] for pairs in times.values())
        print(f"speed-up: {median(a / b for a, b in zip(one, more)):.2f}")
        for asks in (False, True):
            shares = [waiting(folder / "pixels", asks) for _ in range(3)]
            print(f"waiting, rows {'asked for at once' if asks else 'read as touched'}: {', '.join(f'{x:.3f}' for x in shares)}")
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {available_cores()} cores")


if __name__ == "__main__":
    main()
