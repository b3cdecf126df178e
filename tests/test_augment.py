"""Augmentations: properties of all transforms, recorded views, the recipes, and refused arguments."""

import numpy as np
import pytest
from image_batches import images_of, seeded

from minicl.backend import array_module, threads, to_host
from minicl.data.augment import (ColorJitter, Compose, ElasticTransform, GaussianBlur, GaussianNoise, RandomAffine,
                                 RandomErasing, RandomGrayscale, RandomHorizontalFlip, RandomPerspective,
                                 RandomResizedCrop, base, geometric, many_views, mnist_views, photometric, simclr_views,
                                 two_views)
from minicl.distributed import World

GREY_OR_COLOUR = [
    RandomResizedCrop(9), RandomResizedCrop((5, 14)), RandomAffine(shear=10), RandomHorizontalFlip(),
    ElasticTransform(), RandomPerspective(0.6), RandomErasing(p=0.9), RandomErasing(p=0.9, value=0.5), GaussianNoise(),
    GaussianNoise((0.1, 0.3)), GaussianBlur(p=0.9), ColorJitter(), mnist_views(), simclr_views(9),
]
COLOUR = [RandomGrayscale(p=0.5)]
EVERY = [(t, channels) for t in GREY_OR_COLOUR for channels in (1, 3)] + [(t, 3) for t in COLOUR]
IDENTITIES = [
    RandomResizedCrop((10, 12), scale=(1, 1), ratio=(1.2, 1.2)), RandomAffine(0, 0, (1, 1), 0),
    RandomHorizontalFlip(0), ElasticTransform(alpha=0), RandomPerspective(0), RandomErasing(p=0), GaussianNoise(0),
    GaussianBlur(p=0), ColorJitter(p=0), ColorJitter(0, 0, 0, 0, p=1), RandomGrayscale(p=0),
    Compose([]),
]


def name(value):
    return type(value).__name__ if hasattr(value, "transform") else None


# ---------------------------------------------------------------- properties of every transform

@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_a_transform_keeps_dtype_and_range_and_does_not_change_its_input(xp, transform, channels):
    for dtype in ("float32", "float64"):
        images = images_of(xp, channels=channels, dtype=dtype)
        before = to_host(images).copy()
        views = transform(images, np.random.default_rng(0))
        assert views.dtype == dtype and views.ndim == 4 and (len(views), views.shape[3]) == (6, channels)
        assert array_module(views) is xp
        assert -1e-6 <= to_host(views).min() and to_host(views).max() <= 1 + 1e-6
        np.testing.assert_array_equal(to_host(images), before)
        views += 1                                       # a fresh array: the input must not change
        np.testing.assert_array_equal(to_host(images), before)


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_one_seed_gives_the_same_views_on_both_backends_and_in_both_dtypes(xp, transform, channels):
    expected = seeded(transform, images_of(np, channels=channels, dtype="float64"))
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-12)):
        views = seeded(transform, images_of(xp, channels=channels, dtype="float64").astype(dtype))
        np.testing.assert_allclose(views, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_each_image_and_each_call_draws_anew(transform, channels):
    one = images_of(np, n=1, channels=channels)
    images = np.repeat(one, 32, axis=0)
    rng = np.random.default_rng(0)
    first, second = two_views(transform, images, rng)
    assert (first != second).any()
    assert len({view.tobytes() for view in first}) > (1 if two_outcomes(transform) else 8)
    np.testing.assert_array_equal(seeded(transform, images), first)


class Part(World):
    """A stand-in for one of several processes: it has a rank and a size, but does not communicate."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_several_processes_draw_the_views_of_one_process_bit_for_bit(xp, transform, channels, size):
    images = images_of(xp, channels=channels)
    whole = np.random.default_rng(0)
    views = two_views(transform, images, whole)
    for rank in range(size):
        world = Part(rank, size)
        rng = np.random.default_rng(0)
        for mine, all_ in zip(two_views(transform, images[world.part], rng, world), views):
            np.testing.assert_array_equal(to_host(mine), to_host(all_[world.part]))
        assert rng.bit_generator.state == whole.bit_generator.state


def test_a_function_without_a_world_argument_is_refused_where_processes_share_a_batch():
    for augment in (lambda images, rng: images + rng.random(), Compose([lambda images, rng: images])):
        with pytest.raises(TypeError, match="positional arguments"):
            two_views(augment, images_of(np), np.random.default_rng(0), Part(0, 2))


def two_outcomes(transform):
    return isinstance(transform, (RandomHorizontalFlip, RandomGrayscale))


@pytest.mark.parametrize("transform", IDENTITIES, ids=name)
def test_identity_options_return_the_images_unchanged(xp, transform):
    images = images_of(xp, channels=3)
    same = transform(images, np.random.default_rng(0))
    np.testing.assert_allclose(to_host(same), to_host(images), rtol=0, atol=1e-6)
    same += 1                                            # a fresh array here too
    assert to_host(images).max() <= 1


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_no_intermediate_array_is_float64_when_the_images_are_float32(monkeypatch, transform, channels):
    found = []
    for kind in {type(t) for t in getattr(transform, "transforms", [transform])} - {RandomHorizontalFlip}:
        def spy(self, *arrays, apply=kind.apply):
            found.extend(a.dtype for a in arrays)
            return apply(self, *arrays)
        monkeypatch.setattr(kind, "apply", spy)
    for machine in ("bilinear", "resample"):
        def watched(*arrays, run=getattr(geometric, machine)):
            found.extend(a.dtype for a in arrays)
            return run(*arrays)
        for module in (geometric, photometric):
            monkeypatch.setattr(module, machine, watched, raising=False)
    seeded(transform, images_of(np, channels=channels))
    assert set(found) <= {np.dtype("float32")} and (found or isinstance(transform, RandomHorizontalFlip))


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_neither_slices_nor_threads_change_a_view(monkeypatch, transform, channels):
    images = images_of(np, n=13, channels=channels)
    whole = seeded(transform, images)
    monkeypatch.setattr(base, "SLICE_PIXELS", 500)
    np.testing.assert_array_equal(seeded(transform, images), whole)
    with threads(2):
        np.testing.assert_array_equal(seeded(transform, images), whole)


@pytest.mark.parametrize("transform, channels", EVERY, ids=name)
def test_an_empty_batch_stays_empty(xp, transform, channels):
    views = transform(images_of(xp, n=0, channels=channels), np.random.default_rng(0))
    assert views.shape[0] == 0 and views.shape[3] == channels


@pytest.mark.parametrize("transform", GREY_OR_COLOUR + COLOUR, ids=name)
def test_repr_builds_the_transform_again(transform):
    again = eval(repr(transform))
    assert repr(again) == repr(transform)
    images = images_of(np, channels=3)
    np.testing.assert_array_equal(seeded(again, images), seeded(transform, images))


def test_a_view_into_a_larger_array_gives_the_same_views_as_a_copy(xp):
    images = images_of(xp, channels=3)
    flipped = images[::2, ::-1, :, ::-1]
    for transform in GREY_OR_COLOUR + COLOUR:
        np.testing.assert_array_equal(seeded(transform, flipped), seeded(transform, flipped.copy()))


def test_compose_runs_in_order_from_one_rng(xp):
    images = images_of(xp)
    rng = np.random.default_rng(0)
    expected = RandomErasing(p=1)(RandomAffine()(images, rng), rng)
    np.testing.assert_array_equal(seeded(Compose([RandomAffine(), RandomErasing(p=1)]), images), to_host(expected))


# ---------------------------------------------------------------- recorded views

@pytest.mark.parametrize("transform, channels, expected", [
    (RandomResizedCrop(9), 1, -30.651375),
    (RandomResizedCrop((5, 14)), 1, -27.185523),
    (RandomResizedCrop(20), 1, -52.399289),
    (RandomResizedCrop(9, antialias=False), 1, -30.222711),
    (RandomAffine(shear=10), 1, -30.178444),
    (RandomHorizontalFlip(), 1, -30.848586),
    (ElasticTransform(), 1, -41.350143),
    (RandomPerspective(0.6), 1, -16.033889),
    (RandomErasing(p=0.9, value=0.5), 1, -28.198357),
    (GaussianNoise((0.1, 0.3)), 1, -22.795281),
    (GaussianBlur(p=0.9), 1, -31.603723),
    (mnist_views(), 1, -34.997436),
    (RandomResizedCrop(9), 3, -43.149706),
    (RandomResizedCrop((5, 14)), 3, -51.243178),
    (RandomResizedCrop(20), 3, -81.272167),
    (RandomResizedCrop(9, antialias=False), 3, -42.650665),
    (RandomAffine(shear=10), 3, -24.426839),
    (RandomHorizontalFlip(), 3, -28.176030),
    (ElasticTransform(), 3, -30.140779),
    (RandomPerspective(0.6), 3, -27.250382),
    (RandomErasing(p=0.9, value=0.5), 3, -30.840573),
    (GaussianNoise((0.1, 0.3)), 3, -25.282705),
    (GaussianBlur(p=0.9), 3, -35.972624),
    (mnist_views(), 3, -27.629697),
    (ColorJitter(), 3, -35.408021),
    (RandomGrayscale(p=0.5), 3, -29.583515),
    (simclr_views(9), 3, -53.442377),
], ids=name)
def test_one_seed_gives_the_recorded_views(transform, channels, expected):
    """Compares a random projection of the second view: any change of a pixel or of the order of draws changes it."""
    views = two_views(transform, images_of(np, channels=channels, dtype="float64"), np.random.default_rng(0))[1]
    assert (views * np.random.default_rng(7).standard_normal(views.shape)).sum() == pytest.approx(expected, abs=2e-6)


# ---------------------------------------------------------------- recipes

@pytest.mark.parametrize("augment, channels, shape", [
    (mnist_views(), 1, images_of(np, channels=1).shape), (simclr_views(size=16), 3, (6, 16, 16, 3))])
def test_recipes_give_two_different_views(xp, augment, channels, shape):
    first, second = two_views(augment, images_of(xp, channels=channels), np.random.default_rng(0))
    assert first.shape == second.shape == shape and (to_host(first) != to_host(second)).any()


def test_digits_stay_in_frame():
    """MNIST centres a digit in 20 x 20 of 28 x 28 pixels; a disc of that size must keep nearly all its ink in frame."""
    y, x = np.mgrid[:28, :28] - 13.5
    disc = ((y * y + x * x < 100) * 1.0).astype("float32")
    views = seeded(Compose(mnist_views().transforms[:1]), np.repeat(disc[None, :, :, None], 200, axis=0))
    at_the_edge = np.concatenate([views[:, 0], views[:, -1], views[:, :, 0], views[:, :, -1]], axis=1)
    assert at_the_edge.mean() < 0.1


# ---------------------------------------------------------------- refused arguments

@pytest.mark.parametrize("make, words", [
    (lambda: RandomResizedCrop(0), "size must be an integer from 1 to .*, got 0"),
    (lambda: RandomResizedCrop(28.0), "size must be an integer .*got 28.0"),
    (lambda: RandomResizedCrop((28, 28, 1)), "size: expected pixels"),
    (lambda: RandomResizedCrop(28, scale=(0.5, 0.2)), r"scale must be .* got \(0.5, 0.2\)"),
    (lambda: RandomResizedCrop(28, scale=(0.5, 2)), r"scale must be .* <= 1, got"),
    (lambda: RandomResizedCrop(28, ratio=(0, 1)), "ratio must be "),
    (lambda: RandomAffine(degrees=-5), "degrees must be a number v .*got -5"),
    (lambda: RandomAffine(degrees="15"), "degrees must be .*got '15'"),
    (lambda: RandomAffine(degrees=400), "degrees must be "),
    (lambda: RandomAffine(translate=2), r"translate must be a number in \[0, 1\], got 2"),
    (lambda: RandomAffine(scale=(0, 1)), "scale must be "),
    (lambda: RandomAffine(shear=90), "shear must be "),
    (lambda: RandomHorizontalFlip(1.5), "p must be "),
    (lambda: ElasticTransform(alpha=-1), "alpha must be "),
    (lambda: ElasticTransform(sigma=0), "sigma must be "),
    (lambda: RandomPerspective(0.7), "distortion_scale must be "),
    (lambda: RandomErasing(value=255), "value must be "),
    (lambda: RandomErasing(p=True), "p must be .*got True"),
    (lambda: GaussianNoise(float("nan")), "sigma must be "),
    (lambda: GaussianBlur(sigma=(0, 2)), "sigma must be "),
    (lambda: ColorJitter(contrast=(-0.1, 1)), "contrast must be "),
    (lambda: ColorJitter(hue=0.6), "hue must be "),
    (lambda: ColorJitter(saturation=(1, 2, 3)), "saturation must be "),
])
def test_bad_options_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_compose_needs_a_list_of_functions():
    with pytest.raises(TypeError, match=r"Compose\(\[first, second\]\)"):
        Compose(RandomAffine())
    with pytest.raises(TypeError, match="transforms"):
        Compose([RandomAffine(), 3])


@pytest.mark.parametrize("transform", [RandomAffine(), RandomHorizontalFlip(), mnist_views()], ids=name)
def test_bad_images_are_refused_with_a_hint(xp, rng, transform):
    images = images_of(xp)
    with pytest.raises(TypeError, match=r"images: .* got uint8; scale bytes first: .*/ 255"):
        transform((images * 255).astype("uint8"), rng)
    with pytest.raises(TypeError, match=r"got float16; .*astype\('float32'\)"):
        transform(images.astype("float16"), rng)
    with pytest.raises(ValueError, match=r"expected shape \(B, H, W, C\), got \(6, 10, 12\); .*images\[..., None\]"):
        transform(images[..., 0], rng)
    with pytest.raises(ValueError, match=r"1 or 3 channels .* got shape \(6, 1, 10, 12\); channels come last"):
        transform(images.transpose(0, 3, 1, 2), rng)
    with pytest.raises(TypeError, match="images: expected a numpy or cupy array .* got list"):
        transform([1.0], rng)
    for wrong in (0, None, np.random.RandomState(0)):
        with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
            transform(images, wrong)


INSIDE = (0.0, -0.0, 1.0, 1e-45, -1e-45, 1.0005, -0.0005)  # values off by about 1e-3 depend on rounding
OUTSIDE = (255.0, 1.002, -0.002, -1e-2, np.nan, -np.nan, np.inf, -np.inf, 1e30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [*INSIDE, *OUTSIDE])
def test_values_outside_0_to_1_are_refused(value, dtype, rng):
    """A transform checks its input. A chain checks its input and the output of a user's function."""
    images = images_of(np).astype(dtype)
    one = images.copy()
    one[3, 4, 5, 0] = value
    flip = RandomHorizontalFlip()
    calls = [lambda x=x: transform(x, rng) for x in (one, one[::-2, :, ::-1], one.transpose(0, 2, 1, 3))
             for transform in (flip, Compose([flip, flip]), Compose([Compose([flip])]), Compose([lambda images, rng: images]))]
    chains = ([lambda images, rng: one, flip], [flip, lambda images, rng: one, flip], [Compose([lambda images, rng: one]), flip])
    calls += [lambda chain=chain: Compose(chain)(images, rng) for chain in chains]
    for call in calls:
        if value in INSIDE:
            assert call().shape[0] in (3, 6)
        else:
            with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got \[.*normalise after augmenting"):
                call()


# ---------------------------------------------------------------- more than two views

def test_many_views_begin_with_those_of_two_views(xp):
    """many_views draws each view from one generator. The recipes may differ, as in multi-crop."""
    images = images_of(xp, channels=3)
    wide, narrow = RandomResizedCrop(8, scale=(0.4, 1.0)), RandomResizedCrop(8, scale=(0.05, 0.3))
    views = many_views([wide, wide, narrow, narrow], images, np.random.default_rng(1))
    for view, first in zip(views, two_views(wide, images, np.random.default_rng(1))):
        np.testing.assert_array_equal(to_host(view), to_host(first))
    assert len({to_host(view).tobytes() for view in views}) == 4 and {view.shape for view in views} == {(len(images), 8, 8, 3)}
    with pytest.raises(ValueError, match="many_views: augment drew no random numbers from rng, so all views would be alike"):
        many_views([lambda images, rng: images] * 3, images, np.random.default_rng(1))


GREY = np.random.default_rng(0).random((4, 6, 5, 1), dtype="float32")
BUFFER = np.empty((2, *GREY.shape), "float32")


@pytest.mark.parametrize("part", [lambda b, k: b[0], lambda b, k: b[0][::-1], lambda b, k: b.reshape(-1, *GREY.shape[1:])[k:]])
def test_an_augmentation_that_returns_the_same_memory_twice_is_refused(part):
    """Both views would be the second one. Separate parts of one array, and the images themselves, are accepted."""
    calls = []

    def augment(images, rng):
        calls.append(rng.random())
        out = part(BUFFER, len(calls) % 2)[:len(images)]
        out[...] = images * calls[-1]
        return out

    with pytest.raises(ValueError, match="two_views: augment returned an array that it has returned before"):
        two_views(augment, GREY, np.random.default_rng(0))


def test_an_augmentation_may_return_parts_of_one_array_or_the_images():
    calls = []

    def in_turn(images, rng):
        calls.append(rng.random())
        BUFFER[len(calls) % 2] = images * calls[-1]
        return BUFFER[len(calls) % 2]

    view1, view2 = two_views(in_turn, GREY, np.random.default_rng(0))
    np.testing.assert_allclose([view1, view2], [GREY * calls[0], GREY * calls[1]], rtol=1e-6)
    view1, view2 = two_views(lambda images, rng: images if rng.random() < 2 else None, GREY, np.random.default_rng(0))
    assert view1 is view2 is GREY


# ---------------------------------------------------------------- images that are looked at once

@pytest.fixture
def looks(monkeypatch):
    """The images whose values were looked at."""
    found, look = [], base.require_in_range
    monkeypatch.setattr(base, "require_in_range", lambda name, images: found.append(images) or look(name, images))
    return found


FLIP = RandomHorizontalFlip()


@pytest.mark.parametrize("views, augment, expected", [
    (many_views, [FLIP, Compose([FLIP]), FLIP], 1), (many_views, [lambda images, rng: FLIP(FLIP(images, rng), rng)] * 2, 3),
    (two_views, mnist_views(), 1), (two_views, lambda images, rng: FLIP(images[::-1], rng), 2),
    (two_views, lambda images, rng: FLIP(images.copy(), rng), 2),
    (two_views, lambda images, rng: two_views(FLIP, images, rng)[0], 2)])
def test_the_same_images_are_looked_at_once_for_all_views(views, augment, expected, looks):
    for writeable in (True, False):
        images = GREY.copy()
        images.flags.writeable = writeable
        views(augment, images, np.random.default_rng(0))
        assert len(looks) == expected and images.flags.writeable == writeable
        looks.clear()
    FLIP(images, np.random.default_rng(0)), FLIP(images, np.random.default_rng(0))       # outside of a step's views
    assert len(looks) == 2


@pytest.mark.parametrize("of", [lambda a: a[:], lambda a: a[1:, ::-1], lambda a: np.broadcast_to(a[:1], a.shape),
                                lambda a: np.frombuffer(a, a.dtype).reshape(a.shape)])
@pytest.mark.parametrize("writeable", [True, False])
def test_images_that_can_be_written_into_through_another_array_are_looked_at_for_each_view(of, writeable, looks):
    array = GREY.copy()
    images = of(array)
    images.flags.writeable &= writeable

    def augment(images, rng):
        views = FLIP(images, rng)
        array[...] = np.nan
        return views

    with pytest.raises(ValueError, match=r"RandomHorizontalFlip: images: expected values in \[0, 1\], got \[nan, nan\]"):
        two_views(augment, images, np.random.default_rng(0))
    assert len(looks) == 2


def test_images_that_an_augment_has_made_writeable_are_looked_at_again(looks):
    two_views(lambda images, rng: (setattr(images.flags, "writeable", True), FLIP(images, rng))[1], GREY.copy(),
              np.random.default_rng(0))
    assert len(looks) == 2
