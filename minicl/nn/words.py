"""A word-level tokenizer: captions -> token ids. It is a Module, so checkpoints include it."""

import re
from collections.abc import Sequence
from unicodedata import category, normalize

import numpy as np

from ..checks import did_you_mean, require_bool, require_integers, require_ordered
from ..typing import HostArray
from .module import Module

# Accents and vowel signs, of the alphabets before U+AC00: \w has none, and a word would be cut there.
MARKS = "".join(c for c in map(chr, (*range(0x300, 0x2000), *range(0x3000, 0x3100), *range(0xA600, 0xAC00)))
                if category(c) in ("Mn", "Mc"))
LETTER = rf"[\w{MARKS}]"
WORD = re.compile(rf"\w{LETTER}*(?:'\w{LETTER}*)*")           # "don't" is one word; punctuation is not a word


def lowered(text: str) -> str:
    """text in lower case, with one spelling of what is typed in two ways: of é, as one character or two, and of ' and ’."""
    return normalize("NFC", text.lower()).replace("’", "'")


def words_of(text: str) -> list[str]:
    """The words in a text, lowered.

    >>> words_of("Don’t run, dog!"), len(words_of("का की"))
    (["don't", 'run', 'dog'], 2)
    """
    return WORD.findall(lowered(text))


class WordTokenizer(Module):
    """Captions -> ids (N, T) int64, T the length of the longest: 0 is padding, words[k] has the id 1 + k.

    words    the vocabulary: each word once, in lower case
    length   the maximal number of words in a caption
    unknown  True, for captions that people wrote: other words get the id 1 + len(words), punctuation is dropped and
             captions are cut at length. False: a word outside the vocabulary is an error

    size     the number of ids, including padding: a text encoder's `vocabulary`

    >>> tokenizer = WordTokenizer(["red", "seven"], length=4)
    >>> tokenizer(["Red seven", "seven"]).tolist(), tokenizer.size
    ([[1, 2], [2, 0]], 3)
    """

    def __init__(self, words: Sequence[str], length: int, *, unknown: bool = False):
        require_integers("WordTokenizer", 1, length=length)
        require_bool("WordTokenizer", unknown=unknown)
        require_ordered("WordTokenizer", words=words)
        if isinstance(words, str) or not all(isinstance(word, str) and word == word.lower() for word in words):
            raise ValueError(f"WordTokenizer: words must be a list of words in lower case, got {words!r:.100}")
        words = [*map(lowered, words)]
        if odd := [word for word in words if (words_of(word) if unknown else word.split()) != [word]]:
            raise ValueError(f"WordTokenizer: words must be single words, got {odd[0]!r}, which is split in captions")
        self.vocabulary = {word: 1 + k for k, word in enumerate(words)}
        if len(self.vocabulary) < max(1, len(words)):
            raise ValueError(f"WordTokenizer: words must be distinct and not empty, got {words!r:.100}")
        self.length = length
        self.unknown = unknown
        self.size = 1 + len(words) + unknown

    def forward(self, captions: Sequence[str]) -> HostArray:
        require_ordered("tokenize", captions=captions)
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"tokenize: expected a list of captions, each a str, got {captions!r:.100}")
        split = [self._words(caption) for caption in captions]
        ids = np.zeros((len(captions), max(map(len, split), default=0)), dtype=np.int64)
        for row, words in zip(ids, split):
            row[:len(words)] = [self.vocabulary.get(word, len(self.vocabulary) + 1) for word in words]
        return ids

    def _words(self, caption):
        if self.unknown:
            words = words_of(caption)[:self.length]
        else:
            words = lowered(caption).split()
            for word in words:
                if word not in self.vocabulary:
                    raise ValueError(f"tokenize: unknown word {word!r} in {caption!r}{did_you_mean(word, self.vocabulary)} "
                                     f"The vocabulary has {len(self.vocabulary)} words")
        if not 1 <= len(words) <= self.length:
            raise ValueError(f"tokenize: expected captions of 1 to {self.length} words, got {len(words)}: {caption!r}")
        return words
