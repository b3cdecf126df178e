"""What the experiments share: a claim, the setting it is measured in, the record that is kept of it.

A claim is a module with

    CLAIM                the Claim: what it says, the mathematics, the published figures
    measure(setting)     one seed of the experiment -> {name: a number, or a curve as a list of numbers}
    judge(figures)       {name: array (seeds, ...)} -> (verdict, reason), by what the claim says, not by what came out
    draw(figures, path)  the picture, a PNG
    table(figures)       optional: the table's rows, [(what, published or exact, measured), ...], all three text
"""

import importlib
import json
import re
import textwrap
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from minicl import viz
from minicl.backend import threads
from minicl.data import Unavailable, generate_digits, load_mnist
from minicl.files import write_atomically
from minicl.run import RunError
from . import NAMES

SIZES = ("fast", "default", "full")           # seconds, for the tests; minutes on two CPU cores; for a GPU
REPRODUCED, IN_SHAPE, NOT_REPRODUCED = VERDICTS = ("reproduced", "reproduced in shape", "not reproduced")


@dataclass(frozen=True)
class Claim:
    """What is claimed, in words.

    number, name  name is the module's
    title         one line
    says          the claim in two sentences
    mathematics   a few lines of markdown
    source        of the claim and of the published figures
    next          an exercise: what to try next
    published     {figure, or row of the table: the published or exact value, as text}
    columns       {figure: what the table calls it}, where its name is not clear enough
    doubt         why it is expected not to reproduce here; empty for most
    """
    number: int
    name: str
    title: str
    says: str
    mathematics: str
    source: str
    next: str
    published: dict = field(default_factory=dict)
    columns: dict = field(default_factory=dict)
    doubt: str = ""


@dataclass
class Setting:
    """In which one seed of an experiment is measured.

    seed      of weights, order, augmentations and drawn data
    size      one of SIZES
    xp        numpy or cupy
    data_dir  MNIST's folder, or None for the user's cache, else a download
    print     takes a line of text for who waits
    data      what the record will call the data; images() sets it
    """
    seed: int = 0
    size: str = "default"
    xp: object = np
    data_dir: str | None = None
    print: object = print
    data: str = "drawn by the experiment"

    def pick(self, fast, default, full):
        """The one of the three that is meant for this size."""
        return (fast, default, full)[SIZES.index(self.size)]

    def images(self, train, test):
        """ImageData of so many digits, of MNIST if it can be had (then the first ones), else generated from the seed;
        in the fast size always generated."""
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
    """What is kept of an experiment: NN-name.json, beside its picture NN-name.png.

    seconds  for each seed
    figures  {name: one value a seed: a number, or nested lists of numbers}
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

    @property
    def arrays(self):
        """{name: array (seeds, ...)}, as judge, table and draw take them."""
        return {name: np.array(values) for name, values in self.metrics.items()}

    def judged(self):
        """The record with the verdict that its claim gives today."""
        verdict, reason = load_claim(self.name).judge(self.arrays)
        if verdict not in VERDICTS:
            raise ValueError(f"claim {self.claim}: judge must say one of {VERDICTS}, got {verdict!r}")
        return replace(self, verdict=verdict, reason=reason)

    @property
    def caution(self):
        """What the verdict must not be taken for; empty for three seeds at the default size."""
        cautions = [words for words, holds in (("one seed: no spread to judge by", len(self.seeds) == 1),
                                               ("fast size: docs/claims.md has the verdicts", self.size == "fast"))
                    if holds]
        return f" ({'; '.join(cautions)})" if cautions else ""

    def save(self, folder):
        """Write it, a line a figure, so that a diff shows which changed; draw its picture if matplotlib is there."""
        metrics = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in self.metrics.items())
        head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in asdict(self).items()
                       if key != "metrics")
        text = f'{{\n{head}  "metrics": {{\n{metrics}\n  }}\n}}\n'
        write_atomically(record_path(folder, self.name), lambda file: file.write(text.encode()))
        if viz.Figure is not None:
            load_claim(self.name).draw(self.arrays, record_path(folder, self.name).with_suffix(".png"))

    def rows(self):
        """The table: [(what, published or exact, measured), ...]."""
        module, arrays = load_claim(self.name), self.arrays
        if hasattr(module, "table"):
            return module.table(arrays)
        claim = module.CLAIM
        return [(claim.columns.get(name, name), claim.published.get(name, ""), mean_spread(values))
                for name, values in arrays.items() if values.ndim == 1]


def mean_spread(values, form=None, unit=""):
    """"mean ± spread" of one number a seed, values (seeds,); the spread is their standard deviation.

    form   of both numbers, such as ".2f"; by default three digits of the mean, or as many as the spread deserves
    unit   text after them; for " %" the values are fractions
    """
    values = np.asarray(values, dtype=float) * (100 if unit.strip() == "%" else 1)
    mean, spread = values.mean(), values.std(ddof=1) if np.ptp(values) else 0.0
    if form is None:
        finest = spread or abs(mean) / 10 or 1.0
        form = f".{int(np.clip(1 - np.floor(np.log10(finest)), 0, 4))}f"
    text = f"{mean:{form}}"
    return (text if float(text) else text.lstrip("-")) + (f" ± {spread:{form.lstrip('+')}}" if spread else "") + unit


def filled(text):
    """A paragraph of markdown in lines of 118; none begins with a sign or a number, which would make it a list."""
    held = re.sub(r" (?=([-+=<>*#]+|\d+\.) )", "\0", text)
    return textwrap.fill(held, 118, break_on_hyphens=False).replace("\0", " ")


# ---------------------------------------------------------------- finding, measuring, keeping

def load_claim(which):
    """The module of a claim, by number or name. Raises RunError if there is none."""
    name = NAMES[int(which) - 1] if str(which).isdecimal() and 1 <= int(which) <= len(NAMES) else str(which)
    if name not in NAMES:
        raise RunError(f"there is no claim {which}; python examples/claims list shows those there are")
    return importlib.import_module(f"{__package__}.{name}")


def all_claims():
    """The modules of all claims, by number."""
    return [load_claim(name) for name in NAMES]


def experiment(module, seeds=(0, 1, 2), *, size="default", backend="numpy", xp=np, data_dir=None, log=print,
               cpu_threads=None):
    """Measure a claim for each seed and judge it -> Record, not yet saved."""
    claim, seconds, measured, data = module.CLAIM, [], [], ""
    for seed in seeds:
        setting, started = Setting(seed, size, xp, data_dir, log), time.perf_counter()
        with threads(cpu_threads):
            metrics = module.measure(setting)
        measured.append({name: _plain(value, f"claim {claim.number}, seed {seed}: {name}")
                         for name, value in metrics.items()})
        seconds.append(round(time.perf_counter() - started, 1))
        data = setting.data
        log(f"  seed {seed}: {seconds[-1]:.0f} s")
    metrics = {name: [one[name] for one in measured] for name in measured[0]}
    command = f"python examples/claims run {claim.number}" + "".join(
        f" {option}" for option, given in ((f"--seeds {' '.join(map(str, seeds))}", tuple(seeds) != (0, 1, 2)),
                                           (f"--size {size}", size != "default"),
                                           (f"--backend {backend}", backend != "numpy")) if given)
    unjudged = Record(claim.number, claim.name, size, backend, data, list(seeds), command, seconds, "", "", metrics)
    return unjudged.judged()


def _plain(value, what):
    """Numbers as JSON has them, of six digits: what is beyond depends on the machine."""
    array = np.asarray(value, dtype=float)
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{what} is not finite")
    if array.ndim:
        return [_plain(part, what) for part in array]
    return float(f"{array:.6g}")


def record_path(folder, name):
    """Where the record of a claim lies: folder/NN-name.json."""
    return Path(folder) / f"{NAMES.index(name) + 1:02d}-{name}.json"


def read_records(folder):
    """{name: Record} of those in the folder, by number. Raises RunError naming a file that is none."""
    records = {}
    for name in NAMES:
        path = record_path(folder, name)
        if path.exists():
            try:
                records[name] = Record(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise RunError(f"{path} is no record of a claim ({error}); run the claim again, without "
                               "--resume") from error
    return records
