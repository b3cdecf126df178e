"""Captioned digits: images of coloured digits, and captions drawn from a small grammar.

    dataset = CaptionedDigits()
    images, attributes = dataset.render(digits, labels, rng)     # (N, 28, 28, 1) -> (N, 32, 32, 3) uint8, (N, 4)
    captions = dataset.caption(attributes, rng)                  # "in the centre there is a small red seven", ...
    ids = dataset.tokenize(captions)                             # (N, T) int64, 0 is padding

Each image has four attributes: digit, colour, size and place. A caption names some of them, with varied words and order,
and is always true. A fifth of the combinations of digit, colour and place never occurs in training (HELD_OUT); a model
that recognises one has composed it from others.
"""

from collections.abc import Mapping

import numpy as np

from minicl.checks import require_rng
from minicl.data.checks import host_array, indices, number
from minicl.nn import WordTokenizer
from minicl.typing import HostArray, Rng

SIDE = 32                                                    # of the images, in pixels
SIZES = (16, 24)                                             # side of a small and of a large digit's 28 x 28 pixels
LENGTH = 16                                                  # tokens; longer than any caption of the grammar

# The words for each attribute's values; the first is the value's name.
WORDS: dict[str, list[tuple[str, ...]]] = {
    "digit": [("zero", "0", "nought"), ("one", "1"), ("two", "2"), ("three", "3"), ("four", "4"), ("five", "5"),
              ("six", "6"), ("seven", "7"), ("eight", "8"), ("nine", "9")],
    "colour": [("red", "crimson"), ("orange", "tangerine"), ("yellow", "golden"), ("green", "emerald"),
               ("cyan", "turquoise"), ("blue", "azure"), ("purple", "violet"), ("white", "pale")],
    "size": [("small", "little", "tiny"), ("large", "big", "huge")],
    "place": [("in the top left corner", "at the upper left"), ("in the top right corner", "at the upper right"),
              ("in the bottom left corner", "at the lower left"),
              ("in the bottom right corner", "at the lower right"), ("in the centre", "in the middle")],
}
RGB = np.array([(230, 25, 25), (250, 130, 10), (240, 225, 30), (30, 170, 40),
                (40, 215, 225), (45, 75, 240), (150, 40, 190), (245, 245, 245)])
NAMES = {attribute: tuple(words[0] for words in values) for attribute, values in WORDS.items()}
COUNTS = tuple(len(values) for values in WORDS.values())     # (10, 8, 2, 5)

# HELD_OUT[digit, colour, place]: never together in training, though any two of them are; one place for each digit and
# colour. (If a colour were withheld from all sevens, "a seven" would correctly come to mean: not of that colour.)
HELD_OUT = np.add.outer(np.add.outer(np.arange(10), np.arange(8)), np.arange(5)) % 5 == 0

NAMED = {"digit": 0.9, "colour": 0.6, "size": 0.3, "place": 0.4}         # how often a caption names each attribute
OPENERS = ("", "this is", "there is", "a picture of", "a photo of", "we see")
AN = {"eight", "8", "orange", "emerald", "azure"}            # words that "an" precedes


class CaptionedDigits:
    """A renderer, a grammar and the tokenizer of its words.

    >>> dataset = CaptionedDigits()
    >>> dataset.caption(np.array([[7, 0, 0, 4]]), np.random.default_rng(5))         # seven, red, small, in the centre
    ['the digit seven in the centre is crimson and tiny']
    >>> dataset.tokenize(["a red seven", "seven"]).tolist()
    [[11, 48, 51], [51, 0, 0]]
    """

    def __init__(self):
        phrases = [phrase for values in WORDS.values() for same in values for phrase in same]
        words = " ".join([*phrases, *OPENERS, "a an the is and digit number"])
        self.tokenize = WordTokenizer(sorted(set(words.split())), LENGTH)

    # ------------------------------------------------------------ images

    def render(self, digits: HostArray, labels: HostArray, rng: Rng, *,
               held_out: bool | None = False) -> tuple[HostArray, HostArray]:
        """Digits (N, 28, 28, 1) uint8 of classes labels (N,), each in a drawn colour, size and place.

        held_out  False: only combinations of training; True: only those that are held out; None: all
        Returns images (N, 32, 32, 3) uint8 and attributes (N, 4) int64: digit, colour, size, place.
        """
        where = "CaptionedDigits.render"
        host_array(where, "digits", digits, ("N", 28, 28, 1), "uint8")
        host_array(where, "labels", labels, (len(digits),), "integers")
        labels = indices(where, "labels", labels, 10)
        require_rng(where, rng)
        if held_out is not None and not isinstance(held_out, bool):
            raise ValueError(f"{where}: held_out must be False, True or None, got {held_out!r}")
        n = len(digits)
        allowed = np.ones_like(HELD_OUT) if held_out is None else HELD_OUT == held_out
        drawn = rng.random((n, 8 * 5)) * allowed.reshape(10, -1)[labels] # the largest: uniform among the allowed
        colour, place = np.divmod(drawn.argmax(axis=1), 5)
        size = rng.integers(0, 2, n)
        attributes = np.stack([labels, colour, size, place], axis=1)
        ink = _place(digits, size, place, rng)[..., None]                # (N, 32, 32, 1)
        paint = np.clip(RGB[colour] * rng.uniform(0.85, 1.0, (n, 1)) + rng.normal(0, 8, (n, 3)), 0, 255)
        paper = rng.uniform(0, 50, (n, 1, 1, 1)) + rng.normal(0, 6, (n, 1, 1, 3))
        images = paper + ink * (paint[:, None, None].astype(np.float32) - paper)
        return np.clip(images, 0, 255).astype(np.uint8), attributes

    # ------------------------------------------------------------ captions

    def caption(self, attributes: HostArray, rng: Rng, *, named: Mapping[str, float] = NAMED) -> list[str]:
        """A caption for each row of attributes (N, 4). named: the probability that each attribute is named."""
        where = "CaptionedDigits.caption"
        attributes = indices(where, "attributes", attributes, max(COUNTS), ndim=2)
        if attributes.shape[1] != 4 or (attributes >= COUNTS).any():
            raise ValueError(f"{where}: attributes must be (N, 4), each below {COUNTS}, got shape {attributes.shape}")
        if not isinstance(named, Mapping) or named.keys() != WORDS.keys():
            raise ValueError(f"{where}: named must give a probability to each of {', '.join(WORDS)}, got {named!r}")
        for attribute, share in named.items():
            number(where, f"named[{attribute!r}]", share, 0, 1)
        require_rng(where, rng)
        return [self._caption(row, rng, named) for row in attributes]

    def _caption(self, row, rng, named):
        def choose(options):
            return options[rng.integers(len(options))]

        said = {attribute: choose(WORDS[attribute][value]) if rng.random() < named[attribute] else ""
                for attribute, value in zip(WORDS, row)}
        noun = choose(("{}", "{}", "digit {}", "number {}")).format(said["digit"]) if said["digit"] else \
            choose(("digit", "number"))
        adjectives = [word for word in (said["size"], said["colour"]) if word]
        if rng.random() < 0.5:
            adjectives.reverse()
        opener = choose(OPENERS)
        place = said["place"]
        order = rng.integers(3)
        if order == 0 and adjectives:                        # the seven in the top left corner is small and red
            words = ["the", noun, place, "is", " and ".join(adjectives)]
        else:
            thing = " ".join([*adjectives, noun])
            thing = ("an " if thing.split()[0] in AN else "a ") + thing
            words = [place, opener, thing] if order == 1 else [opener, thing, place]
        return " ".join(" ".join(words).split())


# ---------------------------------------------------------------- from digits to places

def _place(digits, size, place, rng):
    """Ink (N, 32, 32) in [0, 1]: digits shrunk to their size and moved to their place, to about a pixel."""
    ink = np.zeros((len(digits), SIDE, SIDE), dtype=np.float32)
    for value, side in enumerate(SIZES):
        ids = np.flatnonzero(size == value)
        shrink = _area_weights(28, side)
        small = shrink @ (digits[ids, :, :, 0] / np.float32(255)) @ shrink.T         # (n, side, side)
        free = SIDE - side
        top, left = np.array([(0, 0), (0, free), (free, 0), (free, free), (free // 2, free // 2)])[place[ids]].T
        top, left = (np.clip(edge + rng.integers(-1, 2, len(ids)), 0, free) for edge in (top, left))
        inside = np.arange(side)
        ink[ids[:, None, None], (top[:, None] + inside)[:, :, None], (left[:, None] + inside)[:, None]] = small
    return ink


def _area_weights(length, shorter):
    """W (shorter, length): each of `shorter` pixels is the mean of the stretch of `length` pixels that it covers."""
    edge = np.arange(shorter + 1) * (length / shorter)
    pixel = np.arange(length)
    overlap = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * (shorter / length)).astype(np.float32)
