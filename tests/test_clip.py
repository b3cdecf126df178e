"""CLIP: fused = composed = a loop, repeated captions, the logit scale, zero-shot, retrieval, and the example."""

import functools
import json
import math
import os
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from device_counts import counted, waits
from hypothesis import given, settings
from hypothesis import strategies as st

from minicl import Tensor, get_backend, viz
from minicl.backend import threads, to_device, to_host
from minicl.contrastive import clip_loss, composed, log_softmax, siglip
from minicl.contrastive.pairs import CrossPairs
from minicl.data import digits, same_caption_ids
from minicl.evaluate import class_embeddings, retrieval_recall, zero_shot_accuracy
from minicl.methods import CLIP
from minicl.nn import MLP, BagOfTokens
from minicl.optim import AdamW

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "clip_captions.py"
SCALES = [0.0, math.log(1 / 0.07), math.log(100)]


def pairs(n, d, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, d))
    return image, image + 0.7 * rng.standard_normal((n, d))


def gradients(loss, arrays, logit_scale, ids, xp, dtype="float64"):
    """[value, dimage, dtext, dlogit_scale], as host arrays."""
    leaves = [Tensor(to_device(np.asarray(x, dtype=dtype), xp), requires_grad=True) for x in (*arrays, logit_scale)]
    value = loss(*leaves, caption_ids=None if ids is None else to_device(ids, xp))
    value.backward()
    return [to_host(value.data)] + [to_host(x.grad) for x in leaves]


def repeated(n):
    """Ids (n,) of n captions, every third of which is the same."""
    return same_caption_ids(np.where(np.arange(n) % 3 == 0, 0, np.arange(n))[:, None])


def clip_model(xp=np, dtype="float32", **options):
    rng = np.random.default_rng(2)
    return CLIP(MLP((4, 4, 1), (8,), rng=rng), BagOfTokens(6, 8, rng=rng), 5, rng=rng, **options).to(xp).astype(dtype)


# ---------------------------------------------------------------- the loss

@pytest.mark.parametrize("logit_scale", SCALES)
@pytest.mark.parametrize("again", [False, True], ids=["all differ", "repeated captions"])
@pytest.mark.parametrize("n", [2, 7, 300])                   # 300 gives four tiles, the last ones smaller
def test_fused_is_composed(n, again, logit_scale, xp):
    ids = repeated(n) if again else None
    for fused, read in zip(gradients(clip_loss, pairs(n, 6), logit_scale, ids, xp),
                           gradients(composed.clip_loss, pairs(n, 6), logit_scale, ids, xp)):
        np.testing.assert_allclose(fused, read, rtol=1e-12, atol=1e-12 * max(1, np.abs(read).max()))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.floats(-1, 3), st.integers(0, 2**32 - 1))
def test_the_loss_is_the_mean_of_two_cross_entropies(n, d, logit_scale, seed):
    image, text = pairs(n, d, seed)
    u, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    e = np.exp(math.exp(logit_scale) * u @ t.T)
    by_image, by_text = e / e.sum(axis=1, keepdims=True), e / e.sum(axis=0)
    expected = -(np.log(by_image.diagonal()).mean() + np.log(by_text.diagonal()).mean()) / 2
    assert math.isclose(clip_loss(image, text, logit_scale).item(), expected, rel_tol=1e-9, abs_tol=1e-10)


def test_embeddings_that_all_coincide_give_the_log_of_the_batch_size(xp):
    z = xp.ones((8, 3))
    assert clip_loss(z, z, SCALES[1]).item() == pytest.approx(math.log(8))


def test_both_sides_are_normalised_by_the_loss(xp):
    image, text = pairs(6, 4)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (2, 6, 1))
    same = [clip_loss(*[to_device(x, xp) for x in views], 2.0).item()
            for views in ((image, text), (image * lengths[0], text), (image, text * lengths[1]))]
    assert same == pytest.approx([same[0]] * 3, rel=1e-12)


def test_images_and_texts_are_treated_alike():
    image, text = pairs(5, 4)
    there, back = (gradients(clip_loss, arrays, 2.0, None, np) for arrays in ((image, text), (text, image)))
    np.testing.assert_allclose([there[0], there[3]], [back[0], back[3]], rtol=1e-12)
    np.testing.assert_allclose(there[1], back[2], rtol=1e-10, atol=1e-14)


# ---------------------------------------------------------------- a scale of 100 in float32

OUTLIERS = {"all alike": lambda n: (np.ones((n, 4)), np.ones((n, 4))),
            "opposite": lambda n: (np.eye(n, 4), -np.eye(n, 4)),
            "one image like nothing": lambda n: (np.eye(n, 4)[:, ::-1] * [1, 1, 1, -1], np.eye(1, 4, 3).repeat(n, 0))}


@pytest.mark.parametrize("arrays", OUTLIERS.values(), ids=OUTLIERS)
@pytest.mark.parametrize("n", [4, 300])
def test_float32_neither_overflows_nor_vanishes_at_scale_100(n, arrays, xp):
    """One batch has rows whose best cosine is -1 and rows where it is 1: exp(100) is infinite, exp(-200) is 0."""
    for single, double in zip(gradients(clip_loss, arrays(n), math.log(100), None, xp, "float32"),
                              gradients(composed.clip_loss, arrays(n), math.log(100), None, xp, "float64")):
        assert single.dtype == "float32"
        rounding = 1e-3 * max(1, np.abs(double).max())  # float32 scores near 100 are off by 1e-5, gradients by 1e-3
        np.testing.assert_allclose(single, double, rtol=0, atol=rounding)


# ---------------------------------------------------------------- repeated captions

TWO_OF_ONE = np.array([[0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])


def test_no_image_is_pushed_from_its_caption_by_another_image_of_it(xp):
    """Two images share a caption, and the first is more like it. As negatives of each other, the first is repelled."""
    image, text = TWO_OF_ONE
    _, as_negatives, *_ = gradients(clip_loss, (image, text), math.log(100), None, xp)
    assert -as_negatives[0] @ text[0] < 0                    # descent moves it away from its own caption
    loss, *slopes = gradients(clip_loss, (image, text), math.log(100), np.array([0, 0, 2]), xp)
    assert loss == pytest.approx(0, abs=1e-10)
    for slope in slopes:
        np.testing.assert_allclose(slope, 0, atol=1e-8)


def test_spreading_the_target_over_equal_captions_would_be_the_plain_loss():
    """This is why copies are excluded instead: see docs/gradients/clip.md."""
    image, text = TWO_OF_ONE
    x = 5 * image @ text.T
    target = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    cross_entropies = log_softmax.forward(x)[0] + log_softmax.forward(x.T)[0].T
    plain = clip_loss(image, text, math.log(5)).item()
    assert -(target * cross_entropies).sum() / 6 == pytest.approx(plain, rel=1e-12)


def test_a_batch_of_one_caption_teaches_nothing_and_is_refused_where_ids_can_be_read(xp):
    if xp is np:
        with pytest.raises(ValueError, match="clip_loss: all 4 caption_ids are equal, so no item has a negative"):
            gradients(clip_loss, pairs(4, 3), 2.0, np.full(4, 7), xp)
        return
    loss, *slopes = gradients(clip_loss, pairs(4, 3), 2.0, np.full(4, 7), xp)
    assert loss == pytest.approx(0, abs=1e-12) and all(np.abs(slope).max() < 1e-12 for slope in slopes)


def test_a_tile_may_consist_of_copies_of_one_caption(xp):
    """The second tile of row 0 has no candidate: its sum must be 0, not 0/0."""
    ids = np.where(np.arange(300) < 256, np.arange(300), 0)
    for fused, read in zip(gradients(clip_loss, pairs(300, 6), math.log(100), ids, xp),
                           gradients(composed.clip_loss, pairs(300, 6), math.log(100), ids, xp)):
        np.testing.assert_allclose(fused, read, rtol=1e-12, atol=1e-12 * max(1, np.abs(read).max()))


def test_a_nearly_solved_batch_keeps_its_digits_in_float32(xp):
    """1 - p is 2e-9 here, which float32 loses if p is subtracted from 1; the scale's gradient is 20 times as large."""
    eye = np.eye(4) + 0.01 * pairs(4, 4)[0]
    single, double = (gradients(clip_loss, (eye, np.eye(4)), math.log(21), None, xp, dtype)
                      for dtype in ("float32", "float64"))
    for one, exact in zip(single, double):
        np.testing.assert_allclose(one, exact, rtol=1e-3, atol=1e-5 * np.abs(exact).max())


def test_copies_are_left_out_in_every_tile_but_the_pairs_stay(xp):
    """Rows 3 and 290, which are in different tiles, have the same caption."""
    image, text = pairs(300, 6)
    text[290] = text[3]
    ids = np.arange(300)
    ids[290] = 3
    u, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    e = np.exp(5 * u @ t.T)
    e[3, 290] = e[290, 3] = 0
    expected = -np.log(e.diagonal() ** 2 / (e.sum(axis=0) * e.sum(axis=1))).mean() / 2
    assert gradients(clip_loss, (image, text), math.log(5), ids, xp)[0] == pytest.approx(expected, rel=1e-12)


def test_ids_of_all_different_captions_change_nothing(xp):
    for with_ids, without in zip(gradients(clip_loss, pairs(6, 3), 2.0, np.arange(6), xp),
                                 gradients(clip_loss, pairs(6, 3), 2.0, None, xp)):
        np.testing.assert_allclose(with_ids, without, rtol=1e-13, atol=1e-15)


def test_same_caption_ids_are_the_first_of_equal_rows():
    ids = np.array([[5, 1], [2, 2], [5, 1], [0, 9], [2, 2], [5, 1]])
    np.testing.assert_array_equal(same_caption_ids(ids), [0, 1, 0, 3, 1, 0])


@pytest.mark.parametrize("ids", [np.zeros(3, dtype=int), np.zeros(4), np.zeros((4, 1), dtype=int)])
def test_invalid_caption_ids_are_refused(ids):
    with pytest.raises(ValueError, match="clip_loss: caption_ids must be 4 integers.*same_caption_ids"):
        clip_loss(*pairs(4, 3), 2.0, caption_ids=ids)


# ---------------------------------------------------------------- tiles and threads

def test_tiles_that_are_not_cached_are_computed_again(monkeypatch, xp):
    def tiles():
        crossed = CrossPairs(np.eye(300), np.eye(300), 7.0, None, cache=True)
        return len(crossed.blocks), crossed.cache
    cached = gradients(clip_loss, pairs(300, 6), 2.0, None, xp)
    assert tiles() == (2, {})
    monkeypatch.setattr("minicl.contrastive.pairs.CACHE_BYTES", 0)
    assert tiles() == (2, None)
    for one, other in zip(cached, gradients(clip_loss, pairs(300, 6), 2.0, None, xp)):
        np.testing.assert_array_equal(one, other)


def test_the_number_of_threads_changes_only_rounding_and_a_repetition_nothing():
    def with_threads(count):
        with threads(count):
            return gradients(clip_loss, pairs(900, 6), 2.0, None, np)
    one, three, again = with_threads(1), with_threads(3), with_threads(3)
    for a, b, c in zip(one, three, again):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
        np.testing.assert_array_equal(b, c)


# ---------------------------------------------------------------- the logit scale

def test_the_scale_starts_at_one_over_tau_and_is_a_logarithm():
    assert clip_model().logit_scale.item() == pytest.approx(2.659, abs=1e-3)
    assert math.exp(clip_model().logit_scale.item()) == pytest.approx(1 / 0.07, rel=1e-6)
    assert math.exp(clip_model(tau=0.2).logit_scale.item()) == pytest.approx(5, rel=1e-6)


def test_the_loss_exponentiates_the_logit_scale():
    image, text = pairs(4, 3)

    def picks(queries, keys):
        return [composed.info_nce(queries[i:i + 1], keys[i:i + 1], np.delete(keys, i, axis=0), 1 / 5.0).item()
                for i in range(4)]
    expected = np.mean(picks(image, text) + picks(text, image))
    assert clip_loss(image, text, math.log(5.0)).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("before, after", [(9.0, math.log(100)), (2.0, 2.0), (-3.0, -3.0)])
def test_clamping_limits_the_scale_to_100_in_the_optimizers_buffer(before, after, xp):
    model = clip_model(xp)
    optimizer = AdamW(model, 1e-3)
    model.logit_scale.data[...] = before
    model.clamp_logit_scale()
    assert model.logit_scale.item() == pytest.approx(after, rel=1e-6)
    (model.logit_scale * 0.0).backward()
    optimizer.step()                                         # raises if the parameter has left the buffer


def test_the_scale_is_learned_but_never_decayed(xp):
    model = clip_model(xp)
    optimizer = AdamW(model, 0.01, weight_decay=10.0)
    before = model.logit_scale.item()
    (model.logit_scale * 0.0).backward()
    optimizer.step()
    assert model.logit_scale.item() == before                # with a gradient of 0, only decay could have moved it
    image, text = model(xp.ones((3, 4, 4, 1), dtype="float32"), to_device(np.array([[1, 2], [3, 0], [4, 5]]), xp))
    clip_loss(image, text, model.logit_scale).backward()
    optimizer.step()
    assert model.logit_scale.item() != before


@pytest.mark.parametrize("given", [14.3, 100, math.nan, "2"])
def test_a_scale_in_place_of_its_logarithm_is_refused(given):
    with pytest.raises((ValueError, TypeError), match="logit_scale must be a number in .-inf, 4.60518..*at most log 100|floating-point"):
        clip_loss(*pairs(4, 3), given)


def test_a_learned_scale_beyond_the_cap_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"clip_loss: logit_scale must be .* got 14.3.*clamp_logit_scale\(\) after each step"):
        clip_loss(*(x.astype("float32") for x in pairs(4, 3)), np.asarray(14.3, dtype="float32"))


@pytest.mark.parametrize("image, text", [((4, 3), (4, 2)), ((4, 3), (5, 3)), ((0, 3), (0, 3)), ((4,), (4,))])
def test_batches_that_are_not_pairs_are_refused(image, text):
    with pytest.raises(ValueError, match="clip_loss: expected"):
        clip_loss(np.ones(image), np.ones(text), 2.0)


def test_a_batch_of_one_has_no_negatives_and_zero_loss(xp):
    for loss in (clip_loss, composed.clip_loss):
        assert all(np.abs(value).max() < 1e-80 for value in gradients(loss, pairs(1, 3), 2.0, None, xp))


def test_one_scale_per_row_is_refused():
    with pytest.raises(ValueError, match=r"logit_scale must be one number, got shape \(4,\)"):
        clip_loss(*pairs(4, 3), np.ones(4))


@counted
def test_a_training_step_never_waits_for_the_device():
    cupy = get_backend("cupy")
    model = clip_model(cupy)
    optimizer = AdamW(model, 0.01)
    images = cupy.ones((4, 4, 4, 1), dtype="float32")
    ids = to_device(np.array([[1, 2], [3, 0], [4, 5], [3, 0]]), cupy)
    same = to_device(np.array([0, 1, 2, 1]), cupy)

    def step():
        loss = clip_loss(*model(images, ids), model.logit_scale, caption_ids=same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_logit_scale()

    assert [waits(step) for _ in range(2)] == [0, 0]


# ---------------------------------------------------------------- zero-shot

VECTORS = {"a cat": [2.0, 0, 0], "the cat": [0, 0.1, 0], "a dog": [0, 0, 7.0], "the dog": [0, 0, 7.0]}


def embed_on(xp):
    return lambda captions: to_device(np.array([VECTORS[caption] for caption in captions]), xp)


def test_class_embeddings_average_unit_prompts_and_are_unit_again(xp):
    classes = to_host(class_embeddings(embed_on(xp), ["cat", "dog"], ["a {}", "the {}"]))
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], rtol=1e-12)


def test_a_class_whose_prompts_disagree_has_no_disadvantage(xp):
    """Without renormalising, the mean of the cat's prompts has length 0.71, and the dog wins this image."""
    classes = class_embeddings(embed_on(xp), ["cat", "dog"], ["a {}", "the {}"])
    image = to_device(np.array([[0.5, 0.5, 0.6]]), xp)
    assert zero_shot_accuracy(image, classes, np.array([0])) == 1.0
    assert zero_shot_accuracy(image * 100, classes, np.array([0])) == 1.0


def test_zero_shot_accuracy_counts_the_nearest_class(xp):
    images = to_device(np.array([[1.0, 0], [0.9, 0.1], [0, 3.0], [-1, 0.5]]), xp)
    classes = to_device(np.array([[1.0, 0], [0, 1.0]]), xp)
    assert zero_shot_accuracy(images, classes, np.array([0, 1, 1, 1])) == 0.75


@pytest.mark.parametrize("templates", [[], ["a cat"], "a {}"])
def test_templates_without_a_place_for_the_name_are_refused(templates):
    with pytest.raises(ValueError, match="expected templates to be a list of captions with {}"):
        class_embeddings(embed_on(np), ["cat"], templates)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match="labels must be below 4, got 5"):
        zero_shot_accuracy(np.ones((2, 3)), np.ones((4, 3)), np.array([0, 5]))


# ---------------------------------------------------------------- retrieval

def test_retrieval_of_coinciding_pairs_is_perfect(xp):
    z = to_device(np.eye(12), xp)
    assert set(retrieval_recall(z, z, np.arange(12)).values()) == {1.0}


def test_images_repeated_with_several_captions_give_a_warning(xp, rng):
    z = rng.standard_normal((4, 8))
    images, captions = to_device(np.repeat(z, 2, axis=0), xp), to_device(rng.standard_normal((8, 8)), xp)
    with pytest.warns(UserWarning, match="retrieval_recall: 4 rows of images repeat another row with another caption"):
        retrieval_recall(images, captions, np.arange(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retrieval_recall(images, captions[:4], np.repeat(np.arange(4), 2))   # with the same caption
        retrieval_recall(xp.ones((8, 8)), captions, np.arange(8))            # of a collapsed encoder


@pytest.mark.parametrize("scale", [np.float32(2.5), np.int8(2), np.float64(2.5), 2])
def test_the_composed_losses_take_the_numbers_that_the_fused_ones_take(scale, rng):
    x, y = map(Tensor, rng.standard_normal((2, 5, 3)))
    np.testing.assert_allclose(composed.clip_loss(x, y, scale).data, clip_loss(x, y, scale).data, rtol=1e-6)
    np.testing.assert_allclose(composed.siglip(x, y, scale, -1.0).data, siglip(x, y, scale, -1.0).data, rtol=1e-6)


def test_recall_counts_the_wrong_candidates_before_the_right_one(xp):
    captions = np.eye(3)
    images = np.array([[1.0, 0, 0], [0.8, 0.6, 0.0], [0.5, 0.4, 0.1]])       # images of captions 0, 1, 2
    found = retrieval_recall(*(to_device(x, xp) for x in (images, captions)), np.arange(3), ks=(1, 2, 3))
    assert [found[f"text_r{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [found[f"image_r{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 3, 1, 1])


def test_recall_counts_the_wrong_candidates_where_no_right_one_has_a_positive_cosine(xp):
    images = np.array([[1.0, 0.0], [-1.0, 0.1], [0.9, 0.5]])
    captions = np.array([[-0.2, 1.0], [0.0, -1.0], [-0.9, -0.5]])
    found = retrieval_recall(*(to_device(x, xp) for x in (images, captions)), np.arange(3), ks=(1, 2))
    assert found["text_r2"] == pytest.approx(1 / 3)


def test_a_repeated_caption_is_one_candidate_and_each_of_its_images_is_a_hit(xp):
    captions = np.array([[1.0, 0], [0, 1.0]])
    images = np.array([[1.0, 0.1], [0.2, 1.0], [1.0, 0.0]])  # images of captions 0, 1, 0
    found = retrieval_recall(*(to_device(x, xp) for x in (images, captions)), np.array([0, 1, 0]), ks=(1,))
    assert found == {"text_r1": 1.0, "image_r1": 1.0}
    images = np.array([[1.0, 0], [0, 1.0], [-1.0, 0]])       # the best of a caption's images counts
    found = retrieval_recall(*(to_device(x, xp) for x in (images, captions)), np.array([0, 1, 0]), ks=(1,))
    assert found == {"text_r1": pytest.approx(2 / 3), "image_r1": 1.0}


def test_a_collapsed_model_retrieves_nothing(xp):
    found = retrieval_recall(xp.ones((12, 3)), xp.ones((12, 3)), np.arange(12))
    assert set(found.values()) == {0.0}
    row, lengths = np.random.default_rng(0).standard_normal(128), np.random.default_rng(1).uniform(0.1, 10, (333, 1))
    images, captions = lengths * row, lengths[::-1] * row                    # cosines of 1, but for rounding
    found = retrieval_recall(to_device(images, xp), to_device(captions, xp), np.arange(333))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("ids, message", [([0, 1, 1], "2 different ids for 3 captions"), ([0, 1, 3], "must be below 3")],
                         ids=["a caption of no image", "an image of no caption"])
def test_ids_must_pair_every_caption_with_an_image(ids, message):
    with pytest.raises(ValueError, match=message):
        retrieval_recall(np.ones((3, 2)), np.ones((3, 2)), np.array(ids))


# ---------------------------------------------------------------- the example

@pytest.fixture
def example(monkeypatch, tmp_path):
    """example(*options): run the script on few digits; returns (exit code, folder)."""
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 120, 60))

    def run(*options, out="out"):
        small = ["--data", "digits", "--batch", "20", "--log-every", "1", "--epochs", "1"]
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *small, *options, "--out", str(tmp_path / out)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        return end.value.code or 0, tmp_path / out
    return run


@pytest.mark.parametrize("text", ["transformer", "bag"])
def test_a_run_ends_with_a_result_on_either_backend(example, monkeypatch, text, xp):
    monkeypatch.setattr(viz, "Figure", None)
    code, folder = example("--text", text, "--backend", "numpy" if xp is np else "cupy")
    result = json.loads((folder / "result.json").read_text())
    assert code == 0
    assert sorted(os.listdir(folder)) == ["checkpoint.npz", "config.json", "log.jsonl", "result.json"]
    assert 0 < result["loss"] < 10 and 13 < result["scale"] < 16
    accuracies = [key for key in result if key.startswith(("digit_", "colour_", "text_", "image_"))]
    assert len(accuracies) == 12 and 0 <= result["caption"] <= 1 and all(0 <= result[key] <= 1 for key in accuracies)


def test_a_batch_of_a_run_may_have_one_caption_only(rng, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    from captioned_digits import CaptionedDigits
    from clip_captions import caption_batch

    class Said(CaptionedDigits):
        """Captions from a list, `captions`."""

        def caption(self, attributes, rng):
            return self.captions

    said = Said()
    for said.captions, expected in ((["a seven", "a seven"], None), (["a seven", "a two"], [0, 1])):
        same = caption_batch(said, np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, int), rng, np)[2]
        assert (same if expected is None else same.tolist()) == expected


def test_a_seed_repeats_its_run_and_pictures_are_drawn(example):
    pytest.importorskip("matplotlib")
    first, again = (example(out=out)[1] for out in ("first", "again"))
    assert (first / "log.jsonl").read_bytes() == (again / "log.jsonl").read_bytes()
    assert sorted(path.name for path in first.glob("*.png")) == ["captions.png", "curves.png"]


def test_chunks_of_a_batch_train_almost_like_the_whole(example, monkeypatch):
    """Batch norm sees each chunk separately, so the losses differ a little."""
    monkeypatch.setattr(viz, "Figure", None)
    losses = []
    for more in ((), ("--chunk", "10", "--clip-grad", "10")):
        code, folder = example("--text", "bag", *more, out=f"out{len(more)}")
        losses.append([json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()])
        assert code == 0
    np.testing.assert_allclose(*losses, rtol=0.2)


@pytest.mark.parametrize("ks", [(1, 2), [2, 1], range(1, 3)])
def test_every_k_has_its_recalls(ks):
    z = np.eye(4)
    assert set(retrieval_recall(z, z, np.arange(4), ks=ks)) == {"text_r1", "text_r2", "image_r1", "image_r2"}


@pytest.mark.parametrize("ks", [iter([1, 2]), map(int, "12"), (k for k in (1, 2)), 5, None, (), np.array([], int), {1, 2}])
def test_ks_that_are_not_a_sequence_are_refused(ks):
    with pytest.raises(ValueError, match="ks must be a sequence"):
        retrieval_recall(np.eye(4), np.eye(4), np.arange(4), ks=ks)
