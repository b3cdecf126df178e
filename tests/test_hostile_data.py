"""Invalid data and options: each argument refuses a table of bad values with an error of one line that names it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioned_digits import WORDS, CaptionedDigits
from minicl.data import (Batches, ImageData, draw_digits, generate_digits, generate_shapes, load_colour_images,
                         load_images, mnist_views, same_caption_ids, simclr_views, two_views)
from minicl.data.augment import (ColorJitter, Compose, ElasticTransform, GaussianBlur, GaussianNoise, RandomAffine,
                                 RandomErasing, RandomGrayscale, RandomHorizontalFlip, RandomPerspective,
                                 RandomResizedCrop)
from minicl.data.shapes import draw_shapes
from sequences import Rotation, SequenceData, generate_rotations, load_sequences, time_first

RNG = np.random.default_rng(0)
NAN, INF = float("nan"), float("inf")
DIGITS = np.zeros((2, 28, 28, 1), np.uint8)
ROW = np.array([[7, 0, 0, 4]])
NAMED = dict.fromkeys(WORDS, 0.5)

# ---------------------------------------------------------------- numbers

ANYTHING_ELSE = [NAN, INF, -INF, None, "1", "", True, 1j, object(), 10**400, {}, [0.5], (0.1, 0.2, 0.3), np.array([1.0]), np.zeros((50, 50))]
KINDS = {                                                # kind of option: (values it refuses, values it accepts)
    "fraction": ([*ANYTHING_ELSE, -0.1, 1.1, -1e-9, (0.1, 0.2)], [0, 1, 0.5, np.float32(0.5)]),
    "size": ([*ANYTHING_ELSE, 0, -1, 2.0, 0.5, np.float64(3)], [1, 7, np.int64(3), np.uint8(3)]),
    "seed": ([*ANYTHING_ELSE, -1, 1.0, 0.5], [0, 7, 2**32, np.int64(3)]),
    "range": ([*ANYTHING_ELSE, -1e9, 1e9, (0.5, 0.1), (NAN, 1), (0, NAN), (0, INF), (-INF, 0), ("0", "1"), (None, None),
               (1,), (0.1, 1e300)], []),
    "number": ([*ANYTHING_ELSE, -1, 1e9, (0.1, 0.2)], []),
}


def generate(function, **options):
    return function(**{"n_train": 1, "n_test": 1, "seed": 0, **options})


OPTIONS = [                                              # (a function of the value, the option's name, its kind)
    (lambda v: RandomResizedCrop(v), "size", "size"), (lambda v: RandomResizedCrop((9, v)), "size", "size"),
    (lambda v: RandomResizedCrop(9, scale=v), "scale", "range"), (lambda v: RandomResizedCrop(9, ratio=v), "ratio", "range"),
    (lambda v: RandomHorizontalFlip(v), "p", "fraction"),
    (lambda v: RandomAffine(degrees=v), "degrees", "range"), (lambda v: RandomAffine(translate=v), "translate", "number"),
    (lambda v: RandomAffine(translate=(0.1, v)), "translate", "fraction"),
    (lambda v: RandomAffine(scale=v), "scale", "range"), (lambda v: RandomAffine(shear=v), "shear", "range"),
    (lambda v: RandomPerspective(v), "distortion_scale", "number"),
    (lambda v: ElasticTransform(alpha=v), "alpha", "number"), (lambda v: ElasticTransform(sigma=v), "sigma", "number"),
    (lambda v: RandomErasing(p=v), "p", "fraction"), (lambda v: RandomErasing(scale=v), "scale", "range"),
    (lambda v: RandomErasing(ratio=v), "ratio", "range"), (lambda v: RandomErasing(value=v), "value", "fraction"),
    (lambda v: GaussianNoise(v), "sigma", "range"), (lambda v: GaussianBlur(sigma=v), "sigma", "range"),
    (lambda v: GaussianBlur(p=v), "p", "fraction"), (lambda v: ColorJitter(brightness=v), "brightness", "range"),
    (lambda v: ColorJitter(contrast=v), "contrast", "range"), (lambda v: ColorJitter(saturation=v), "saturation", "range"),
    (lambda v: ColorJitter(hue=v), "hue", "range"), (lambda v: ColorJitter(p=v), "p", "fraction"),
    (lambda v: RandomGrayscale(v), "p", "fraction"), (lambda v: simclr_views(v), "size", "size"),
    (lambda v: Batches(v, 1), "n", "size"), (lambda v: Batches(10, v), "batch_size", "size"),
    (lambda v: Batches(10, 2, seed=v)[3], "seed", "seed"), (lambda v: Batches(10, 2)[v], "step", "seed"),
    *[(lambda v, f=f, o=o: generate(f, **{o: v}), o, "seed" if o == "seed" else "size")
      for f in (generate_digits, generate_shapes) for o in ("n_train", "n_test", "seed")],
    (lambda v: generate_rotations(Rotation(length=2), v, 1), "n", "size"),
    (lambda v: generate_rotations(Rotation(length=2), 1, v), "n", "size"),
    (lambda v: generate_rotations(Rotation(length=2), 1, 1, seed=v), "seed", "seed"),
    *[(lambda v, o=o: Rotation(**{o: v}), o, "size") for o in ("planes", "channels", "length")],
    (lambda v: Rotation(noise=v), "noise", "number"), (lambda v: Rotation(decay=v), "decay", "number"),
    *[(lambda v, o=o: CaptionedDigits().caption(ROW, RNG, named={**NAMED, o: v}), o, "fraction") for o in WORDS],
    *[(lambda v, f=f: f(name=v), "name", "name") for f in (load_images, load_colour_images)],
]
KINDS["name"] = ([None, 1, "", "MNIST", "digits ", "../mnist", b"mnist", ["mnist"], NAN], [])


@pytest.mark.parametrize("call, option, kind", OPTIONS, ids=[f"{k}-{o}" for k, (_, o, _) in enumerate(OPTIONS)])
def test_every_option_refuses_invalid_values(call, option, kind):
    refused, taken = KINDS[kind]
    for value in refused:
        if option in ("size", "translate") and isinstance(value, tuple) and len(value) == 2:
            continue                                     # these options accept a pair
        with pytest.raises((ValueError, TypeError)) as caught:
            call(value)
        assert option in str(caught.value) and "\n" not in str(caught.value), (value, str(caught.value))
    for value in taken:
        call(value)


@given(st.sampled_from([(c, o) for c, o, k in OPTIONS if k in ("range", "number", "fraction")]),
       st.floats() | st.tuples(st.floats(), st.floats()) | st.integers())
def test_any_number_is_refused_by_name_or_gives_finite_views_within_0_1(case, value):
    call, option = case
    try:
        made = call(value)
    except (ValueError, TypeError) as error:
        assert option in str(error)
        return
    if hasattr(made, "transform"):
        images = np.random.default_rng(0).random((3, 6, 5, 3), dtype="float32")
        views = made(images, np.random.default_rng(1))
        assert np.isfinite(views).all() and views.min() >= -1e-5 and views.max() <= 1 + 1e-5


# ---------------------------------------------------------------- images

EVERY = [RandomResizedCrop(4), RandomAffine(), RandomHorizontalFlip(), ElasticTransform(), RandomPerspective(),
         RandomErasing(), GaussianNoise(), GaussianBlur(), ColorJitter(), RandomGrayscale(), mnist_views(), simclr_views(4)]
GOOD = np.random.default_rng(0).random((4, 6, 5, 3), dtype="float32")


def with_one(value):
    images = GOOD.copy()
    images[3, 5, 4, 2] = value
    return images


IMAGES = {
    "bytes": (GOOD * 255).astype("uint8"), "ints": np.ones((2, 4, 4, 1), int), "bools": GOOD > 0.5,
    "float16": GOOD.astype("float16"), "longdouble": GOOD.astype(np.longdouble), "complex": GOOD.astype("complex64"),
    "big-endian": GOOD.astype(">f4"), "objects": GOOD.astype(object), "masked": np.ma.masked_less(GOOD, 0.5),
    "one NaN": with_one(NAN), "one infinity": with_one(INF), "one -infinity": with_one(-INF), "one above": with_one(1.01),
    "one below": with_one(-0.01), "0 to 255": GOOD * 255, "-1 to 1": GOOD * 2 - 1, "no axis": np.float32(0.5),
    "one image": GOOD[0], "no channel": GOOD[..., 0], "two channels": GOOD[..., :2], "four": np.zeros((2, 4, 4, 4), "f4"),
    "no channels": GOOD[..., :0], "channels first": np.zeros((2, 3, 8, 8), "f4"), "five axes": GOOD[None], "list": [[0.5]],
    "no height": GOOD[:, :0], "no width": GOOD[:, :, :0], "none": None,
}


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_every_transform_refuses_hostile_images(images):
    for transform in EVERY:
        with pytest.raises((ValueError, TypeError), match="images: expected") as caught:
            transform(images, np.random.default_rng(0))
        assert "\n" not in str(caught.value)
        with pytest.raises((ValueError, TypeError), match="images: expected"):
            two_views(transform, images, np.random.default_rng(0))


@pytest.mark.parametrize("channels", (1, 3))
@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (7, 1), (2, 3), (40, 1)])
def test_every_transform_accepts_the_smallest_images(height, width, channels):
    images = np.random.default_rng(0).random((5, height, width, channels), dtype="float32")
    for transform in EVERY:
        views = transform(images, np.random.default_rng(0))
        assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 1 and len(views) == 5


@pytest.mark.parametrize("layout", [
    lambda x: np.asfortranarray(x), lambda x: x[:, ::-1], lambda x: x[::2], lambda x: x.transpose(0, 2, 1, 3),
    lambda x: np.broadcast_to(x[:1], x.shape), lambda x: x[..., ::-1],
])
def test_no_layout_in_memory_changes_a_view(layout):
    images = layout(GOOD)
    for transform in EVERY:
        expected = transform(np.ascontiguousarray(images), np.random.default_rng(0))
        np.testing.assert_array_equal(transform(images, np.random.default_rng(0)), expected)


@pytest.mark.parametrize("rng", [None, 0, np.random, np.random.RandomState(0), np.random.PCG64(0), "rng"])
def test_every_random_function_refuses_what_is_not_a_generator(rng):
    calls = [lambda: two_views(mnist_views(), GOOD, rng), lambda: draw_digits([1], rng), lambda: draw_shapes([1], rng),
             lambda: CaptionedDigits().render(DIGITS, np.array([1, 2]), rng), lambda: CaptionedDigits().caption(ROW, rng),
             lambda: Rotation().draw(2, rng), *[lambda t=t: t(GOOD, rng) for t in EVERY]]
    for call in calls:
        with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
            call()


# ---------------------------------------------------------------- views

@given(st.sampled_from(EVERY), st.integers(0, 2**32), st.sampled_from(["PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM"]))
def test_two_views_are_never_the_same_draw(transform, seed, bits):
    rng = np.random.Generator(getattr(np.random, bits)(seed))
    images = np.random.default_rng(0).random((24, 6, 6, 3), dtype="float32")
    pairs = [two_views(transform, images, rng) for _ in range(3)]                # three steps with one generator
    views = {view.tobytes() for pair in pairs for view in pair}
    assert len(views) == 6


@pytest.mark.parametrize("augment", [
    lambda images, rng: images, Compose([]), lambda images, rng: RandomAffine()(images, np.random.default_rng(0)),
])
@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox"])
def test_an_augmentation_that_does_not_draw_from_the_generator_is_refused(augment, bits):
    with pytest.raises(ValueError, match="two_views: augment drew no random numbers from rng"):
        two_views(augment, GOOD, np.random.Generator(getattr(np.random, bits)(0)))


# ---------------------------------------------------------------- labelled images

FIELDS = dict(name="x", train_images=np.zeros((3, 4, 4, 1), np.uint8), train_labels=np.array([0, 1, 1]),
              test_images=np.zeros((2, 4, 4, 1), np.uint8), test_labels=np.array([0, 1]), class_names=("a", "b"))
NO_IMAGES = [None, [], 0, np.zeros((3, 4, 4, 1)), np.zeros((3, 4, 4, 1), np.int8), np.zeros((3, 4, 4, 1), bool),
             np.zeros((3, 4, 4), np.uint8), np.zeros((3, 0, 4, 1), np.uint8), np.zeros((0, 4, 4, 1), np.uint8),
             np.zeros((3, 4, 4, 0), np.uint8), np.ma.zeros((3, 4, 4, 1), np.uint8), np.zeros((9, 4, 4, 1), np.uint8)]
NO_LABELS = [None, [0, 1, 1], np.array([0, 1, 1], np.int32), np.array([0, 1, 1], np.uint8), np.array([0.0, 1, 1]),
             np.array([True, False, True]), np.array([[0], [1], [1]]), np.array([0]), np.array([0, 1, 2]),
             np.array([-1, 0, 1]), np.array([], int), np.array([0, 1, 1], ">i8"), np.array(["a", "b", "b"]),
             np.ma.array([0, 1, 1]), np.array(0), np.array([0, 1, 2**62])]


def test_an_empty_batch_has_no_views():
    with pytest.raises(ValueError, match=r"two_views: images must hold at least one image, got shape \(0, 8, 8, 1\)"):
        two_views(mnist_views(), np.zeros((0, 8, 8, 1), "float32"), np.random.default_rng(0))


@pytest.mark.parametrize("field, values", [
    ("train_images", NO_IMAGES), ("test_images", NO_IMAGES), ("train_labels", NO_LABELS), ("test_labels", NO_LABELS),
    ("class_names", [None, (), [], ["a", "b"], "ab", ("a",), (0, 1), ("a", None), ("a", "a")]), ("name", [None, 1, b"x"]),
])
def test_image_data_refuses_every_invalid_field(field, values):
    ImageData(**FIELDS)
    for value in values:
        with pytest.raises((ValueError, TypeError), match="ImageData: ") as caught:
            ImageData(**{**FIELDS, field: value})
        assert field.split("_")[-1] in str(caught.value) and "\n" not in str(caught.value), value


def test_a_subset_has_at_least_one_image():
    data = ImageData(**FIELDS)
    for n in (0, -1, -3, 1.0, 0.5, True, "2", NAN, [1]):
        with pytest.raises((TypeError, ValueError), match="ImageData.first: n must be an integer from 1 to "):
            data.first(n)
    assert [len(data.first(n).train_images) for n in (1, 2, 3, 10**9, None, np.int64(2))] == [1, 2, 3, 3, 3, 2]


NO_CLASSES = [[10], [-1], [1.5], [1.0], ["1"], [True], [[1]], 1, [None], [NAN], [10**30], None]


def test_drawing_an_unknown_class_is_refused():
    for draw in (draw_digits, draw_shapes):
        for labels in NO_CLASSES:
            with pytest.raises(ValueError, match=f"{draw.__name__}: labels must be"):
                draw(labels, RNG)
        for labels in ([], [1], np.array([1], np.uint8), (1, 2)):
            assert len(draw(labels, RNG)) == len(labels)


# ---------------------------------------------------------------- captions and sequences

def test_captioned_digits_refuse_invalid_arguments():
    dataset = CaptionedDigits()
    labels = np.array([1, 2])
    for digits in (None, DIGITS.tolist(), DIGITS / 255, DIGITS[..., 0], DIGITS[:, :27], DIGITS.repeat(3, axis=3)):
        with pytest.raises(ValueError, match="render: digits must be"):
            dataset.render(digits, labels, RNG)
    for wrong in (None, [1, 2], [1.0, 2.0], np.array([1, 10]), np.array([-1, 2]), np.array([1.0, 2]), np.array([1]),
                  np.array([[1], [2]]), np.array([True, False])):
        with pytest.raises(ValueError, match="render: labels must be"):
            dataset.render(DIGITS, wrong, RNG)
    for held_out in (0, 1, 2, "yes", NAN, []):
        with pytest.raises(ValueError, match="render: held_out must be"):
            dataset.render(DIGITS, labels, RNG, held_out=held_out)


def test_a_caption_of_unknown_attributes_is_refused():
    caption = CaptionedDigits().caption
    for attributes in (None, [1, 2, 3, 4], [[1, 2, 3]], [[10, 0, 0, 0]], [[0, 8, 0, 0]], [[0, 0, 2, 0]], [[0, 0, 0, 5]],
                       [[-1, 0, 0, 0]], [[0.0, 0, 0, 0]], [["0", "0", "0", "0"]], [[[0, 0, 0, 0]]]):
        with pytest.raises(ValueError, match="caption: attributes must be"):
            caption(attributes, RNG)
    for named in (None, {}, {"digit": 1.0}, {**NAMED, "shape": 1.0}, [0.5] * 4):
        with pytest.raises(ValueError, match="caption: named must give"):
            caption(ROW, RNG, named=named)
    assert caption(np.zeros((0, 4), int), RNG) == []


def test_captions_and_ids_of_the_wrong_kind_are_refused():
    dataset = CaptionedDigits()
    for captions in ("a red seven", [b"a"], [None], [1], ["a", 2], [""], [" "], ["a\0"], ["a red\u200bseven"], ["siete"]):
        with pytest.raises(ValueError, match="tokenize: "):
            dataset.tokenize(captions)
    assert dataset.tokenize([]).shape == (0, 0) and dataset.tokenize(("A  Red\n\tSeven",)).shape == (1, 3)
    for ids in (None, [[1, 2]], np.array([1, 2]), np.array([[1.0, NAN]]), np.zeros((2, 2, 2), int), np.array([["a"]])):
        with pytest.raises(ValueError, match="same_caption_ids: ids must be"):
            same_caption_ids(ids)


@given(st.lists(st.lists(st.integers(0, 3) | st.sampled_from([-2**62, 2**62]), min_size=3, max_size=3), max_size=12))
def test_rows_have_one_caption_id_if_and_only_if_they_are_equal(rows):
    ids = same_caption_ids(np.array(rows, dtype=np.int64).reshape(-1, 3))
    assert ids.tolist() == [rows.index(row) for row in rows]


X = np.zeros((3, 4, 2), np.float32)


@pytest.mark.parametrize("change", [
    dict(train=None), dict(train=X.tolist()), dict(train=X.astype(float)), dict(train=X[0]), dict(train=X[:0]),
    dict(train=X[:, :0]), dict(train=X + np.float32(NAN)), dict(train=X.astype(np.uint8)), dict(train=X.astype(">f4")),
    dict(test=X[:, :3]), dict(test=X[..., :1]), dict(test=X - np.float32(INF)), dict(train_labels=np.array([0, 1])),
    dict(train_labels=[0, 1, 2]), dict(train_labels=np.array([0.0, 1, 2])), dict(train_labels=np.array([[0], [1], [2]])),
    dict(test_labels=np.array([0, 1, 2, 3])), dict(test_states=X[:2]), dict(test_states=X[:, 0]), dict(test_states=5),
], ids=str)
def test_sequence_data_refuses_every_invalid_field(change):
    good = SequenceData("x", X, X, np.array([0, 1, 2]), np.array([0, 1, 2]), X)
    with pytest.raises(ValueError, match=f"SequenceData: ({next(iter(change))}|test) must be") as caught:
        dataclasses.replace(good, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [None, X.tolist(), X.astype(float), X.astype(int), X[0], X > 0, X.astype("float16")])
def test_time_first_refuses_unsupported_batches(batch):
    with pytest.raises(ValueError, match="time_first: sequences must be a NumPy array"):
        time_first(batch, np)


@pytest.mark.parametrize("name", KINDS["name"][0])
def test_sequences_are_loaded_only_by_their_exact_name(name):
    with pytest.raises((ValueError, TypeError), match="name must be|unhashable"):
        load_sequences(name)


def test_minus_zero_is_zero_as_an_option():
    images = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
    first, second = (RandomPerspective(zero)(images, np.random.default_rng(1)) for zero in (0.0, -0.0))
    np.testing.assert_array_equal(first, second)
