"""Captioned digits: the images, their captions, the held-out combinations, and unknown words."""

import re

import numpy as np
import pytest

from captioned_digits import COUNTS, HELD_OUT, LENGTH, NAMES, RGB, WORDS, CaptionedDigits
from minicl.data import generate_digits

DATASET = CaptionedDigits()
ALL = dict.fromkeys(WORDS, 1.0)
EVERYTHING = np.indices(COUNTS).reshape(4, -1).T             # all 800 combinations of attributes


@pytest.fixture(scope="module")
def shown():
    data = generate_digits(2000, 1)
    return DATASET.render(data.train_images, data.train_labels, np.random.default_rng(0)), data


def said_of(caption):
    """{attribute: value} for the phrases that occur in a caption."""
    return {attribute: value for attribute, values in WORDS.items() for value, phrases in enumerate(values)
            if any(re.search(rf"\b{phrase}\b", caption) for phrase in phrases)}


def ink(images):
    """(N, 32, 32): how much brighter each pixel is than the paper, whose value is the median of its image."""
    x = images.astype(float).max(axis=3)
    return np.clip(x - np.median(x, axis=(1, 2), keepdims=True) - 25, 0, None)


# ---------------------------------------------------------------- images

def test_images_are_bytes_in_colour_with_four_attributes(shown):
    (images, attributes), data = shown
    assert images.shape == (2000, 32, 32, 3) and images.dtype == np.uint8
    assert attributes.shape == (2000, 4) and attributes.dtype == np.int64
    np.testing.assert_array_equal(attributes[:, 0], data.train_labels)
    assert all(set(column) == set(range(count)) for column, count in zip(attributes.T, COUNTS))


def test_a_digit_is_at_its_place(shown):
    (images, attributes), _ = shown
    x = ink(images)
    grid = np.arange(32) - 15.5
    down, right = ((x * grid[:, None]).sum(axis=(1, 2)), (x * grid).sum(axis=(1, 2))) / x.sum(axis=(1, 2))
    for place, (vertical, horizontal) in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1), (0, 0)]):
        at = attributes[:, 3] == place
        for offset, side in ((down, vertical), (right, horizontal)):
            assert (offset[at] * side > 0.5).all() if side else (np.abs(offset[at]) < 4).all()


def test_a_large_digit_has_more_ink_than_a_small_one(shown):
    (images, attributes), _ = shown
    pixels = (ink(images) > 20).sum(axis=(1, 2))
    assert np.median(pixels[attributes[:, 2] == 1]) > 1.8 * np.median(pixels[attributes[:, 2] == 0])


def test_the_brightest_pixel_has_the_colour(shown):
    (images, attributes), _ = shown
    at = ink(images).reshape(2000, -1).argmax(axis=1)
    pixel = images.reshape(2000, -1, 3)[np.arange(2000), at].astype(float)
    nearest = ((pixel / np.linalg.norm(pixel, axis=1, keepdims=True))
               @ (RGB / np.linalg.norm(RGB, axis=1, keepdims=True)).T).argmax(axis=1)
    assert (nearest == attributes[:, 1]).mean() > 0.97


@pytest.mark.parametrize("held_out", [False, True, None])
def test_held_out_combinations_are_rendered_only_when_asked_for(shown, held_out):
    data = shown[1]
    seen = np.zeros_like(HELD_OUT)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        _, attributes = DATASET.render(data.train_images, data.train_labels, rng, held_out=held_out)
        seen[tuple(attributes[:, [0, 1, 3]].T)] = True
    np.testing.assert_array_equal(seen, HELD_OUT == held_out if held_out is not None else True)


def test_any_two_attributes_of_a_held_out_combination_are_seen_together():
    digit, colour, _, place = COUNTS
    assert HELD_OUT.shape == (digit, colour, place) and HELD_OUT.mean() == 0.2
    assert all((~HELD_OUT).any(axis=axis).all() for axis in range(3))
    assert (HELD_OUT.sum(axis=2) == 1).all() and (HELD_OUT.sum(axis=0) == 2).all()


def test_a_seed_gives_the_same_images_and_captions_again(shown):
    (images, attributes), data = shown
    again, _ = DATASET.render(data.train_images, data.train_labels, np.random.default_rng(0))
    np.testing.assert_array_equal(images, again)
    one, other, third = (DATASET.caption(attributes[:50], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == other != third


@pytest.mark.parametrize("digits, labels", [(np.zeros((2, 28, 28, 1)), np.zeros(2, int)),
                                            (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, int)),
                                            (np.zeros((2, 28, 28, 1), np.uint8), np.zeros(3, int))])
def test_arrays_that_are_not_digits_are_refused(digits, labels):
    with pytest.raises(ValueError, match=r"render: (digits must .* of uint8|labels must .* of integers)"):
        DATASET.render(digits, labels, np.random.default_rng(0))


# ---------------------------------------------------------------- captions

def test_a_caption_contains_nothing_false():
    captions = DATASET.caption(EVERYTHING, np.random.default_rng(0))
    for caption, row in zip(captions, EVERYTHING):
        truth = dict(zip(WORDS, row))
        assert all(truth[attribute] == value for attribute, value in said_of(caption).items()), (caption, row)


def test_a_caption_that_names_everything_identifies_its_combination():
    captions = DATASET.caption(EVERYTHING, np.random.default_rng(1), named=ALL)
    assert [tuple(said_of(caption)[attribute] for attribute in WORDS) for caption in captions] \
        == [tuple(row) for row in EVERYTHING]


def test_captions_name_each_attribute_about_as_often_as_asked():
    named = {"digit": 1.0, "colour": 0.8, "size": 0.0, "place": 0.5}
    said = [said_of(caption) for caption in DATASET.caption(EVERYTHING, np.random.default_rng(2), named=named)]
    for attribute, share in named.items():
        assert np.mean([attribute in one for one in said]) == pytest.approx(share, abs=0.05)


def test_one_combination_has_many_captions():
    row = np.array([[8, 1, 0, 0]])                           # a small orange eight in the top left corner
    captions = set(DATASET.caption(row.repeat(300, axis=0), np.random.default_rng(0), named=ALL))
    assert len(captions) > 100
    assert any(caption.startswith("in the top left") for caption in captions)
    assert any(" is " in caption and caption.startswith("the ") for caption in captions)
    assert all(any(words in caption for caption in captions) for words in ("tiny orange", "orange tiny"))
    assert not any(re.search(r"\ba (orange|eight|8)\b|\ban (small|tiny|little|tangerine|digit|number)\b", caption)
                   for caption in captions)


def test_every_caption_of_the_grammar_can_be_tokenized():
    captions = DATASET.caption(EVERYTHING.repeat(5, axis=0), np.random.default_rng(3), named=ALL)
    ids = DATASET.tokenize(captions)
    assert ids.dtype == np.int64 and ids.shape[1] <= LENGTH
    words = {k: word for word, k in DATASET.tokenize.vocabulary.items()}
    assert [" ".join(words[k] for k in row if k) for row in ids] == captions


def test_ids_start_at_one_and_zero_is_padding():
    ids = DATASET.tokenize(["a red seven", "seven"])
    assert ids.shape == (2, 3) and (ids[0] > 0).all() and list(ids[1, 1:]) == [0, 0] and ids[1, 0] == ids[0, 2]
    assert sorted(DATASET.tokenize.vocabulary.values()) == list(range(1, 1 + len(DATASET.tokenize.vocabulary)))
    np.testing.assert_array_equal(DATASET.tokenize(["A Red SEVEN"])[0], ids[0])


@pytest.mark.parametrize("caption, message", [
    ("a red sevn", "unknown word 'sevn' in 'a red sevn'; did you mean 'seven'"),
    ("a zebra", "unknown word 'zebra'.*The vocabulary has"),
    ("", "1 to 16 words, got 0"),
    (" ".join(["a"] * 17), "1 to 16 words, got 17"),
])
def test_captions_without_ids_are_refused_with_a_hint(caption, message):
    with pytest.raises(ValueError, match=message):
        DATASET.tokenize(["a red seven", caption])


def test_class_names_are_in_the_vocabulary():
    for names in NAMES.values():
        DATASET.tokenize(names)
