"""What the experiments share: the contract of a claim, the setting it is measured in, the record of its result.

A claim is a module of this folder, listed in claims.NAMES, that defines

    CLAIM                a Claim: the statement, the mathematics, the published values
    measure(setting)     one run of the experiment -> {name: a number, or nested lists of numbers}. Names and shapes are
                         the same for every seed, and all that is random follows from setting.seed
    verdict(metrics)     -> (one of VERDICTS, the reason as text), decided by the statement, not by the outcome
    draw(metrics, path)  saves the picture, a PNG file
    table(metrics)       optional -> rows of text, [(what, published or exact, measured), ...]; default: a row for each
                         metric that is a single number, with its entry in CLAIM.published

For the last three, metrics is {name: array (seeds, ...)}, the results of measure for all seeds. They depend on nothing
else, so `report --redraw` can repeat them from the records.
"""

import contextlib
import importlib
import itertools
import json
import re
import sys
import textwrap
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minicl import viz
from minicl.backend import threads
from minicl.data import Unavailable, generate_digits, load_mnist
from minicl.files import write_atomically
from minicl.run import RunError
from . import NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZES = ("fast", "default", "full")           # for tests, seconds; for two CPU cores, minutes; for a GPU
REPRODUCED, QUALITATIVE, NOT_REPRODUCED = VERDICTS = ("reproduced", "qualitatively reproduced", "not reproduced")


@dataclass(frozen=True)
class Claim:
    """A claim in words.

    number, name  its place in NAMES, from 1, and the name of its module
    title         one line
    statement     two or three sentences
    mathematics   a few lines of markdown
    source        of the claim and of the published values
    next          an exercise: what to try next
    published     {metric, or row of the table: the published or exact value, as text}
    columns       {metric: its description in the table}, where its name is not clear enough
    doubt         why its fast size may not show it; empty for most
    seeds         of the record: 0 1 2, or others where the setting was chosen by runs with these
    """
    number: int
    name: str
    title: str
    statement: str
    mathematics: str
    source: str
    next: str
    published: dict = field(default_factory=dict)
    columns: dict = field(default_factory=dict)
    doubt: str = ""
    seeds: tuple = (0, 1, 2)


@dataclass
class Setting:
    """The arguments of one measurement, and what it reports while it runs.

    seed      of weights, order, augmentations and drawn data
    size      one of SIZES
    xp        numpy or cupy
    data_dir  MNIST's folder, or None for the user's cache, else a download
    print     prints a line of text
    data      the record's name for the data; images() sets it
    status    what the measurement is doing, for the progress line; training.descend() sets it
    trained   (steps, examples a step, examples to train on) of each training; so does this
    """
    seed: int = 0
    size: str = "default"
    xp: object = np
    data_dir: str | None = None
    print: object = print
    data: str = "drawn by the experiment"
    status: str = "preparing"
    trained: set = field(default_factory=set)

    def pick(self, fast, default, full):
        """The one of three values that belongs to this size."""
        return (fast, default, full)[SIZES.index(self.size)]

    def images(self, train, test):
        """ImageData of MNIST's first `train` and `test` digits. Where MNIST is not available, and always for the fast
        size, they are generated from the seed."""
        found = None
        if self.size != "fast":
            try:
                found = load_mnist(self.data_dir, log=self.print)
            except Unavailable as error:
                self.print(f"{error.reason}: going on with generated digits; --data-dir FOLDER reads MNIST's files")
        found = found or generate_digits(train, test, seed=self.seed)
        self.data = {"mnist": "MNIST", "digits": "generated digits"}[found.name]
        return replace(found, train_images=found.train_images[:train], train_labels=found.train_labels[:train],
                       test_images=found.test_images[:test], test_labels=found.test_labels[:test])


@dataclass(frozen=True)
class Record:
    """The result of an experiment: NN-name.json, beside its picture NN-name.png.

    seconds  for each seed
    metrics  {name: list of one value a seed, a number or nested lists of numbers}
    trained  [[steps, examples a step, examples to train on], ...], the lengths of all trainings
    """
    claim: int
    name: str
    size: str
    backend: str
    data: str
    seeds: list
    command: str
    seconds: list
    verdict: str
    reason: str
    metrics: dict
    trained: list = field(default_factory=list)

    @property
    def arrays(self):
        """{name: array (seeds, ...)}, the argument of verdict, table and draw."""
        return {name: np.array(values) for name, values in self.metrics.items()}

    def with_verdict(self):
        """The record with the verdict of its claim as the module computes it now."""
        verdict, reason = load_claim(self.name).verdict(self.arrays)
        if verdict not in VERDICTS:
            raise ValueError(f"claim {self.claim}: verdict() must return one of {VERDICTS} first, got {verdict!r}")
        return replace(self, verdict=verdict, reason=reason)

    @property
    def caution(self):
        """What limits the verdict; empty for several seeds at the default size on the data of the published values."""
        cautions = ["one seed: no standard deviation"] if len(self.seeds) == 1 else []
        if self.size == "fast":
            cautions.append("fast size: docs/claims.md has the verdicts")
        elif self.data == "generated digits":
            cautions.append("generated digits, not the data of the published values")
        return f" ({'; '.join(cautions)})" if cautions else ""

    def save(self, folder):
        """Write it, one line a metric, so that a diff shows which changed; draw the picture if matplotlib is there."""
        metrics = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in self.metrics.items())
        head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in asdict(self).items()
                       if key != "metrics")
        text = f'{{\n{head}  "metrics": {{\n{metrics}\n  }}\n}}\n'
        self._keep_earlier(record_path(folder, self.name))
        write_atomically(record_path(folder, self.name), lambda file: file.write(text.encode()))
        if viz.Figure is not None:
            load_claim(self.name).draw(self.arrays, record_path(folder, self.name).with_suffix(".png"))

    def _keep_earlier(self, path):
        """Rename a record of other seeds, size or backend, and its picture, to NN-name-2, NN-name-3, ..."""
        try:
            before = Record(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):             # none, or damaged
            return
        if (before.seeds, before.size, before.backend) != (self.seeds, self.size, self.backend):
            kept = next(free for k in itertools.count(2) if not (free := path.with_name(f"{path.stem}-{k}.json")).exists())
            print(f"  the earlier record, --seeds {' '.join(map(str, before.seeds))} --size {before.size} --backend "
                  f"{before.backend}, is kept as {kept}", flush=True)
            path.rename(kept)
            if path.with_suffix(".png").exists():
                path.with_suffix(".png").rename(kept.with_suffix(".png"))

    def rows(self):
        """The table: [(what, published or exact, measured), ...]."""
        module = load_claim(self.name)
        arrays = self.arrays
        if hasattr(module, "table"):
            return module.table(arrays)
        claim = module.CLAIM
        return [(claim.columns.get(name, name), claim.published.get(name, ""), mean_std(values))
                for name, values in arrays.items() if values.ndim == 1]


def mean_std(values, form=None, unit=""):
    """The text "mean ± standard deviation" of one number a seed, values (seeds,).

    form   format of both numbers, such as ".2f"; default: two digits of the deviation, or three of the mean
    unit   text after them; for " %" the values are fractions
    """
    values = np.asarray(values, dtype=float) * (100 if unit.strip() == "%" else 1)
    mean = values.mean()
    std = values.std(ddof=1) if np.ptp(values) > 1e-12 * abs(mean) else 0.0   # else they differ by rounding
    if form is None:
        finest = std or abs(mean) / 10 or 1.0
        form = f".{int(np.clip(1 - np.floor(np.log10(finest)), 0, 12 if finest > 1e-12 else 4))}f"
    text = f"{mean:{form}}"
    return (text if float(text) else text.lstrip("-")) + (f" ± {std:{form.lstrip('+')}}" if std else "") + unit


def mean_stds(values, form=None, unit=""):
    """mean_std of each column of values (seeds, n), separated by commas."""
    return ", ".join(mean_std(column, form, unit) for column in np.asarray(values).T)


def exceeds_std(values):
    """Whether the mean of values (seeds, ...) over the seeds is above 0 by more than their standard deviation."""
    std = values.std(axis=0, ddof=1) if len(values) > 1 else 0
    return values.mean(axis=0) > std


def filled(text):
    """A paragraph of markdown in lines of 118 columns, none of which begins like a list item."""
    held = re.sub(r" (?=([-+=<>*#]+|\d+\.) )", "\0", text)
    return textwrap.fill(held, 118, break_on_hyphens=False).replace("\0", " ")


# ---------------------------------------------------------------- finding, measuring, reading

def load_claim(which):
    """The module of a claim, by number or name. Raises RunError if there is none."""
    name = NAMES[int(which) - 1] if str(which).isdecimal() and 1 <= int(which) <= len(NAMES) else str(which)
    if name not in NAMES:
        raise RunError(f"there is no claim {which}; python examples/claims list shows those there are")
    return importlib.import_module(f"{__package__}.{name}")


def all_claims():
    """The modules of all claims, by number."""
    return [load_claim(name) for name in NAMES]


def experiment(module, seeds=None, *, size="default", backend="numpy", xp=np, data_dir=None, log=print,
               cpu_threads=None):
    """Measure a claim with each seed, by default its own, and compute its verdict -> Record, not yet saved."""
    claim = module.CLAIM
    seeds = seeds or claim.seeds
    seconds = []
    measured = []
    expected = published_seconds(claim.name) if (size, backend) == ("default", "numpy") else None
    for done, seed in enumerate(seeds):
        setting = Setting(seed, size, xp, data_dir, log)
        started = time.perf_counter()

        def progress():
            elapsed = time.perf_counter() - started
            text = f"seed {seed} ({done + 1} of {len(seeds)}): {elapsed:.0f} s, {setting.status}"
            left = max((expected or 0) - elapsed, 0) + (expected or 0) * (len(seeds) - done - 1)
            return text + (f"; about {left:.0f} s left" if left else "")

        with threads(cpu_threads), heartbeat(progress, log):
            metrics = module.measure(setting)
        measured.append({name: _plain(value, f"claim {claim.number}, seed {seed}: {name}")
                         for name, value in metrics.items()})
        seconds.append(round(time.perf_counter() - started, 1))
        log(f"  seed {seed}: {seconds[-1]:.0f} s")
        expected = sum(seconds) / len(seconds)
    metrics = {name: [one[name] for one in measured] for name in measured[0]}
    command = f"python examples/claims run {claim.number}"
    if tuple(seeds) != claim.seeds:
        command += f" --seeds {' '.join(map(str, seeds))}"
    if size != "default":
        command += f" --size {size}"
    if backend != "numpy":
        command += f" --backend {backend}"
    return Record(claim.number, claim.name, size, backend, setting.data, list(seeds), command, seconds, "", "",
                  metrics, [list(lengths) for lengths in sorted(setting.trained)]).with_verdict()


def published_seconds(name):
    """Seconds of the fastest seed in docs/claims, or None without a record: the first guess of how long a seed takes."""
    record = read_records(DOCS / "claims").get(name)
    return record and min(record.seconds)


@contextlib.contextmanager
def heartbeat(progress, log, *, seconds=10):
    """While the block runs, show progress(), a text: in a terminal as a line below the output, renewed every second;
    elsewhere log it every `seconds`."""
    bar = tqdm(bar_format="  {desc}", leave=False, file=sys.stdout, disable=not is_terminal(), dynamic_ncols=True)
    done = threading.Event()

    def beat():
        while not done.wait(seconds if bar.disable else 1):
            if bar.disable:
                log(f"    {progress()}")
            else:
                bar.set_description_str(progress())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()


def is_terminal():
    return sys.stdout is not None and sys.stdout.isatty()


def _plain(value, what):
    """Python numbers of six digits, for JSON: further digits depend on the machine."""
    array = np.asarray(value, dtype=float)
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{what} is not finite")
    if array.ndim:
        return [_plain(part, what) for part in array]
    return float(f"{array:.6g}")


def record_path(folder, name):
    """The path of a claim's record: folder/NN-name.json."""
    return Path(folder) / f"{NAMES.index(name) + 1:02d}-{name}.json"


def read_records(folder):
    """{name: Record} of the folder's records, by number. Raises RunError with the name of a file that is not one."""
    records = {}
    for name in NAMES:
        path = record_path(folder, name)
        if path.exists():
            try:
                records[name] = Record(**json.loads(path.read_text()))
                if records[name].name != name:
                    raise ValueError(f"it is that of {records[name].name}")
            except (ValueError, TypeError) as error:
                raise RunError(f"{path} is not a record of a claim ({error}); run the claim again, without "
                               "--resume") from error
    return records
