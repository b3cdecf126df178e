"""The contrastive losses: fused = composed = a loop, at ordinary and tiny temperatures, and the common mistakes."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicl
from minicl import Tensor, contrastive, ops
from minicl.backend import threads, to_device, to_host
from minicl.contrastive import clip_loss, composed, info_nce, l2_normalize, log_softmax, nt_xent, pairs

TAUS = [0.005, 0.02, 0.07, 0.5, 2.0]


def gradients(loss, arrays, tau, xp, learn_tau):
    """[value, d/d array..., (d/d tau)] of loss(*arrays, tau), as host arrays."""
    leaves = [Tensor(to_device(x, xp), requires_grad=True) for x in arrays]
    t = Tensor(xp.asarray(tau, dtype=arrays[0].dtype), requires_grad=True) if learn_tau else tau
    value = loss(*leaves, t)
    value.backward()
    return [to_host(value.data)] + [to_host(x.grad) for x in leaves + [t] * learn_tau]


def views(n, d, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d))
    return z.astype(dtype), (z + 0.5 * rng.standard_normal((n, d))).astype(dtype)


# ---------------------------------------------------------------- fused = composed = loop

@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("learn_tau", [False, True], ids=["fixed tau", "learned tau"])
@pytest.mark.parametrize("n", [2, 3, 130])                   # 260 views give several tiles, the last one smaller
def test_nt_xent_fused_is_composed(n, tau, learn_tau, xp):
    for fused, read in zip(gradients(nt_xent, views(n, 7), tau, xp, learn_tau),
                           gradients(composed.nt_xent, views(n, 7), tau, xp, learn_tau)):
        np.testing.assert_allclose(fused, read, rtol=1e-12, atol=1e-12 * max(1, np.abs(read).max()))


def test_at_the_largest_tau_what_is_left_out_still_does_not_count():
    for loss in nt_xent, composed.nt_xent:
        assert loss(*map(Tensor, views(5, 7)), 1e20).item() == pytest.approx(np.log(9), rel=1e-12)
        with pytest.raises(ValueError, match=r"tau must be a number in \[1e-30, 1e20\], got 1e\+21"):
            loss(*map(Tensor, views(5, 7)), 1e21)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("learn_tau", [False, True], ids=["fixed tau", "learned tau"])
@pytest.mark.parametrize("m", [1, 5, 600])                   # 600 negatives give several tiles
def test_info_nce_fused_is_composed(m, tau, learn_tau, xp):
    arrays = (*views(4, 7), np.random.default_rng(2).standard_normal((m, 7)))
    for fused, read in zip(gradients(info_nce, arrays, tau, xp, learn_tau),
                           gradients(composed.info_nce, arrays, tau, xp, learn_tau)):
        np.testing.assert_allclose(fused, read, rtol=1e-12, atol=1e-12 * max(1, np.abs(read).max()))


LABELS, IDS, WEIGHTS = np.array([3, 1, 3, 0, 1, 3]), np.array([0, 1, 0, 2, 1, 3]), np.array([0.5, 1.25, 1.75, 0.5, 1, 1])
# {name: (number of embeddings, the learned numbers, options)}
LOSSES = {
    "info_nce": (3, [0.3], {}), "nt_xent": (2, [0.3], {}), "clip_loss": (2, [1.7], {}),
    "info_nce, ids": (3, [0.3], {"ids": IDS, "negative_ids": IDS[::-1].copy()}), "nt_xent, ids": (2, [0.3], {"ids": LABELS}),
    "dcl, ids": (2, [0.3], {"ids": LABELS}), "clip_loss, repeated captions": (2, [1.7], {"caption_ids": IDS}), "siglip": (2, [1.5, -2.0], {}),
    "siglip, repeated captions": (2, [1.5, -2.0], {"caption_ids": IDS}), "sup_con": (1, [0.3], {"labels": LABELS}),
    "sup_con, base temperature": (1, [0.3], {"labels": LABELS, "base_temperature": 0.07}), "dcl": (2, [0.3], {}),
    "dcl, weights": (2, [0.3], {"weights": WEIGHTS}), "triplet": (3, [], {"margin": 0.9}),
    "alignment_loss": (2, [], {}), "alignment_loss, distance": (2, [], {"alpha": 1}),
    "uniformity_loss": (1, [], {}), "uniformity_loss, sharp": (1, [], {"t": 60}), "negative_cosine": (2, [], {}),
    "vicreg": (2, [], {"variance": 2.0, "eps": 0.01}), "barlow_twins": (2, [], {"off_diagonal": 0.1}),
}


@pytest.mark.parametrize("dead", [[], [0], [0, 3], range(6)], ids=["alive", "one row dead", "two", "all"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_fused_is_composed(name, dead, xp):
    """Compares the loss and the gradients of embeddings, temperature, logit scale and bias, also with rows of zeros."""
    count, numbers, options = LOSSES[name]
    arrays = [x.copy() for x in (*views(6, 4), views(6, 4, seed=1)[0])[:count]]
    for x in arrays:
        x[list(dead)] = 0
    options = {key: to_device(value, xp) if key in ("caption_ids", "weights") else value for key, value in options.items()}
    found = []
    for home in (contrastive, composed):
        leaves = [Tensor(to_device(np.asarray(x), xp), requires_grad=True) for x in [*arrays, *numbers]]
        loss = getattr(home, name.partition(",")[0])(*leaves, **options)
        loss.backward()
        found.append([loss.item()] + [None if leaf.grad is None else to_host(leaf.grad) for leaf in leaves])
    for fused, read in zip(*found):
        assert (fused is None) == (read is None)
        if read is not None:
            np.testing.assert_allclose(fused, read, rtol=1e-12, atol=1e-12 * max(1, np.abs(read).max()))


def test_every_loss_has_a_composed_form():
    losses = {name.partition(",")[0] for name in LOSSES}
    assert losses == set(composed.__all__) - {"EXCLUDED"}
    assert losses == {name for name in contrastive.__all__ if name.endswith("loss") or callable(getattr(contrastive, name))
                      and hasattr(getattr(contrastive, name), "forward")} - {"cosine_similarity", "l2_normalize", "softmax",
                                                                            "log_softmax"} | {"negative_cosine"}


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("n", [3, 130])                      # 130 items give several tiles
def test_false_negatives_are_left_out_at_any_temperature(n, tau, xp):
    """Some queries have no negative left: for n = 3 all negatives of info_nce share the id of item 0."""
    rng = np.random.default_rng(n)
    ids = rng.integers(n // 2 + 1, size=n)
    ids[:2] = 0, 1                                           # so that not all ids are equal
    negative_ids = np.zeros(600, dtype=int) if n == 3 else rng.integers(n, size=600)
    arrays = *views(n, 7), rng.standard_normal((600, 7))
    for name, count, options in (("nt_xent", 2, {"ids": ids}), ("dcl", 2, {"ids": ids}),
                                 ("info_nce", 3, {"ids": ids, "negative_ids": negative_ids})):
        found = [gradients(functools.partial(getattr(home, name), **options), arrays[:count], tau, xp, True)
                 for home in (contrastive, composed)]
        for fused, read in zip(*found):
            np.testing.assert_allclose(fused, read, rtol=1e-11, atol=1e-12 * max(1, np.abs(read).max()))


def test_distinct_ids_change_nothing(xp):
    arrays = views(6, 4)
    apart = np.arange(6)
    for loss in (nt_xent, contrastive.dcl):
        for with_ids, without in zip(gradients(functools.partial(loss, ids=apart), arrays, 0.3, xp, True),
                                     gradients(loss, arrays, 0.3, xp, True)):
            np.testing.assert_array_equal(with_ids, without)


WITH_IDS = {
    "nt_xent": lambda z1, z2, ids: nt_xent(z1, z2, 0.3, ids=ids), "dcl": lambda z1, z2, ids: contrastive.dcl(z1, z2, 0.3, ids=ids),
    "info_nce": lambda z1, z2, ids: info_nce(z1, z2, views(9, 4)[0], 0.3, ids=ids, negative_ids=np.full(9, ids[0])),
    "clip_loss": lambda z1, z2, ids: contrastive.clip_loss(z1, z2, 1.5, caption_ids=ids),
    "siglip": lambda z1, z2, ids: contrastive.siglip(z1, z2, 1.5, -2.0, caption_ids=ids),
    "semi_hard_negatives": lambda z1, z2, ids: contrastive.semi_hard_negatives(z1, z2, ids=ids)}


@pytest.mark.parametrize("name", WITH_IDS)
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 7), same=st.integers(0, 2**31 - 2), differ=st.sampled_from([None, 0, -1]), dtype=st.sampled_from("lLi"))
def test_several_items_without_any_negative_are_refused(name, n, same, differ, dtype):
    """One of several items is enough to give the others a negative; a single item has none by the formula."""
    ids = np.full(n, same, dtype)
    if differ is not None:
        ids[differ] += 1
    if n == 1 and name in ("dcl", "semi_hard_negatives"):                    # which need two items
        return
    if n > 1 and differ is None:
        with pytest.raises(ValueError, match=f"{name}: all {n} .*ids are equal, so no item has a negative"):
            WITH_IDS[name](*views(n, 4), ids)
        return
    found = WITH_IDS[name](*views(n, 4), ids)
    if n == 1 and name != "siglip":                                          # siglip's positive does not need a negative
        assert found.item() == pytest.approx(0, abs=1e-12)


def test_a_false_negative_is_not_pushed_away():
    """Two photos show one cat: without ids they repel each other, with ids they do not."""
    z = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]])
    push = {name: gradients(functools.partial(nt_xent, **options), (z, z.copy()), 0.2, np, False)[1][0, 1]
            for name, options in (("as negatives", {}), ("left out", {"ids": np.array([0, 0, 1])}))}
    assert push["as negatives"] > 0.05 and push["left out"] == 0     # descent moves against it, away from the other cat


@pytest.mark.parametrize("ids", [np.arange(5), np.zeros((6, 1), dtype=int), np.zeros(6), [0, 0, 1, 1, 2, 2], None],
                         ids=["too few", "a column", "floats", "a list", "none"])
def test_ids_must_be_one_integer_per_item(ids):
    z1, z2 = views(6, 4)
    calls = {"nt_xent": lambda: nt_xent(z1, z2, 0.5, ids=ids), "dcl": lambda: contrastive.dcl(z1, z2, 0.5, ids=ids),
             "info_nce": lambda: info_nce(z1, z2, z2, 0.5, ids=np.arange(6), negative_ids=ids),
             "semi_hard_negatives": lambda: contrastive.semi_hard_negatives(z1, z2, ids=ids)}
    if ids is None:
        for one in ("ids", "negative_ids"):
            with pytest.raises(ValueError, match=f"info_nce: give both ids .* or neither; (?!{one}).* is missing"):
                info_nce(z1, z2, z2, 0.5, **{one: np.arange(6)})
        return
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"{name}: (negative_)?ids must be a host \(numpy\) array of 6 integers"):
            call()


def naive_nt_xent(z1, z2, tau):
    z = [row / np.linalg.norm(row) for row in np.concatenate([z1, z2])]
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        scores = {k: math.exp(z[i] @ z[k] / tau) for k in range(2 * n) if k != i}
        total -= math.log(scores[(i + n) % (2 * n)] / sum(scores.values()))
    return total / (2 * n)


def naive_info_nce(query, positive, negatives, tau):
    def cos(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    total = 0.0
    for q, k in zip(query, positive):
        hit = math.exp(cos(q, k) / tau)
        total -= math.log(hit / (hit + sum(math.exp(cos(q, n) / tau) for n in negatives)))
    return total / len(query)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.floats(0.05, 3), st.integers(0, 2**32 - 1))
def test_nt_xent_is_its_definition(n, d, tau, seed):
    z1, z2 = views(n, d, seed)
    assert math.isclose(nt_xent(z1, z2, tau).item(), naive_nt_xent(z1, z2, tau), rel_tol=1e-10, abs_tol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.floats(0.05, 3), st.integers(0, 2**32 - 1))
def test_info_nce_is_its_definition(n, m, d, tau, seed):
    (q, k) = views(n, d, seed)
    negatives = np.random.default_rng(seed + 1).standard_normal((m, d))
    assert math.isclose(info_nce(q, k, negatives, tau).item(), naive_info_nce(q, k, negatives, tau),
                        rel_tol=1e-10, abs_tol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.floats(0.1, 2), st.integers(0, 2**32 - 1))
def test_gradients_are_correct_for_drawn_shapes_and_temperatures(n, d, tau, seed):
    z1, z2 = views(n, d, seed)
    assert minicl.gradcheck(lambda a, b, t: nt_xent(a, b, t), [z1, z2, np.array(tau)], atol=1e-6)
    assert minicl.gradcheck(lambda a, b, t: info_nce(a, b, z1[::-1].copy(), t), [z1, z2, np.array(tau)], atol=1e-6)


def test_results_do_not_depend_on_tiles(monkeypatch):
    """The size of the tiles, the cache and the number of threads change only rounding."""
    arrays = views(40, 6)
    u = l2_normalize.forward(views(40, 6)[0])[0]
    whole = gradients(nt_xent, arrays, 0.2, np, True)
    monkeypatch.setattr(pairs, "tile_size", lambda xp, n: 7)
    assert len(pairs.SymmetricPairs(u, 0.2, cache=True).tiles) == 6 * 7 / 2
    for cached in (pairs.CACHE_BYTES, 0):
        monkeypatch.setattr(pairs, "CACHE_BYTES", cached)
        assert (pairs.SymmetricPairs(u, 0.2, cache=True).cache is None) == (cached == 0)
        alone = gradients(nt_xent, arrays, 0.2, np, False)
        with threads(2):
            together, again = (gradients(nt_xent, arrays, 0.2, np, False) for _ in range(2))
        for a, b, c, d in zip(whole, alone, together, again):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(a, c, rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(c, d)


@pytest.mark.parametrize(("n", "m", "tiles"), [(3, 4099, 9), (300, 4099, 9), (700, 2100, 5), (2, 900, 4)])
@pytest.mark.parametrize("tau", [0.2, 1e-3])
@pytest.mark.parametrize("with_ids", [False, True])
def test_info_nce_in_several_tiles_is_composed(n, m, tiles, tau, with_ids, xp, rng):
    """Fewer queries than a tile is wide, and more; with exponentials in which each row's largest cosine is subtracted."""
    if xp is np:
        assert len(pairs.QueryPairs(rng.standard_normal((n, 6)), rng.standard_normal((m, 6)), tau).tiles) == tiles
    arrays = *views(n, 6), rng.standard_normal((m, 6))
    ids = {"ids": np.arange(n) % 5, "negative_ids": np.arange(m) % 7} if with_ids else {}
    for threads_ in (1, 2):
        with threads(threads_):
            fused, small_ops = (gradients(functools.partial(loss, **ids), arrays, tau, xp, True)
                                for loss in (info_nce, composed.info_nce))
        for one, other in zip(fused, small_ops):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_no_matrix_of_all_pairs_is_stored():
    """At most 16 MiB of exponentials are cached; here they would take 256 MiB."""
    import tracemalloc
    z1, z2 = views(4096, 16, dtype="float32")
    leaf = Tensor(z1, requires_grad=True)
    tracemalloc.start()
    nt_xent(leaf, z2, 0.5).backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


# ---------------------------------------------------------------- known values

def test_a_collapse_costs_the_log_of_the_number_of_candidates(xp):
    same = xp.ones((8, 4))
    assert math.isclose(nt_xent(same, same, 0.2).item(), math.log(15), rel_tol=1e-12)
    assert math.isclose(info_nce(same, same, same, 0.2).item(), math.log(9), rel_tol=1e-12)


def test_swapping_the_views_changes_nothing():
    z1, z2 = views(5, 3)
    assert math.isclose(nt_xent(z1, z2, 0.3).item(), nt_xent(z2, z1, 0.3).item(), rel_tol=1e-14)


def test_the_length_of_an_embedding_does_not_matter():
    z1, z2 = views(5, 3)
    assert math.isclose(nt_xent(z1, z2, 0.3).item(), nt_xent(z1 * 7, z2 * 0.1, 0.3).item(), rel_tol=1e-12)


def test_push_and_pull_of_an_anchor_balance():
    """Equation (2): the weights of an anchor's candidates sum to 0."""
    scores = Tensor(np.random.default_rng(0).standard_normal((4, 6)), requires_grad=True)
    (-log_softmax(scores, 0.3)[:, 0].mean()).backward()
    np.testing.assert_allclose(scores.grad.sum(axis=1), 0, atol=1e-14)
    assert (scores.grad[:, 0] < 0).all() and (scores.grad[:, 1:] > 0).all()


def test_the_gradient_is_orthogonal_to_the_embedding():
    z1, z2 = views(5, 3)
    _, dz1, dz2 = gradients(nt_xent, (z1, z2), 0.3, np, False)
    np.testing.assert_allclose((z1 * dz1).sum(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose((z2 * dz2).sum(axis=1), 0, atol=1e-14)


# ---------------------------------------------------------------- common mistakes

def test_an_anchor_is_not_its_own_negative():
    """With orthogonal images and equal views, each anchor has one candidate at cosine 1 and 2N - 2 at cosine 0."""
    z = np.eye(4)
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 6))
    assert math.isclose(nt_xent(z, z, 0.5).item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("tau", [1e-20, 1e-8, 1e-7, 1e-6, 1e-4, 0.003, 0.0124, 0.02])
def test_tiny_temperatures_neither_overflow_nor_vanish_in_float32(tau, xp):
    """Scores near 1 / tau have rounding errors of eps / tau; the differences of cosines, which matter, do not."""
    tau = float(np.float32(tau))
    # unrelated views, for a large loss
    z1, z2, z3 = np.random.default_rng(0).standard_normal((3, 150, 8)).astype("float32")
    for loss, arrays in ((nt_xent, (z1, z2)), (info_nce, (z1, z2, z3)), (contrastive.dcl, (z1, z2))):
        learned = tau > 1e-8                                 # the gradient of tau grows as 1 / tau^2
        single = gradients(loss, arrays, tau, xp, learned)
        double = gradients(loss, tuple(x.astype("float64") for x in arrays), tau, xp, learned)
        for a, b in zip(single, double):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-3 * np.abs(b).max())


@pytest.mark.parametrize("tau", [0.01, 0.02, 0.05])          # losses of 3e-22 (with row maxima), 1e-11 and 4e-5
@pytest.mark.parametrize("learn_tau", [False, True], ids=["fixed tau", "learned tau"])
def test_a_nearly_solved_batch_keeps_its_gradient_in_float32(tau, learn_tau, xp):
    """Only the scores are inexact, by a few eps / tau. A softmax's p - 1 over all candidates would be noise here."""
    z1, noise, z3 = np.random.default_rng(0).standard_normal((3, 64, 32)).astype("float32")
    z2 = z1 + np.float32(0.05) * noise
    for loss, arrays in ((nt_xent, (z1, z2)), (info_nce, (z1, z2, z3))):
        single = gradients(loss, arrays, tau, xp, learn_tau)
        double = gradients(loss, tuple(x.astype("float64") for x in arrays), tau, xp, learn_tau)
        assert 0 < double[0] < 1e-3
        for a, b in zip(single, double):
            np.testing.assert_allclose(a, b, rtol=0, atol=8 * np.finfo("float32").eps / tau * np.abs(b).max())


def test_a_column_against_a_row_does_not_broadcast_into_a_loss():
    z1, z2 = views(4, 3)
    for loss in (nt_xent, composed.nt_xent):
        with pytest.raises(ValueError, match=r"nt_xent: expected two arrays \(N, d\) of the same N items"):
            loss(Tensor(z1), Tensor(z2[:3]), 0.5)
        with pytest.raises(ValueError, match="two arrays"):
            loss(Tensor(z1), Tensor(z2[0]), 0.5)
    for loss in (info_nce, composed.info_nce):
        with pytest.raises(ValueError, match="info_nce: expected two arrays"):
            loss(Tensor(z1), Tensor(z2[:, :1]), Tensor(z2), 0.5)


@pytest.mark.parametrize("tau", [0, -1, float("nan"), float("inf"), "0.5", None], ids=repr)
def test_a_temperature_must_be_a_number_above_zero(tau):
    z1, z2 = views(4, 3)
    for loss in (nt_xent, composed.nt_xent):
        with pytest.raises((ValueError, TypeError), match="tau"):
            loss(Tensor(z1), Tensor(z2), tau)


@pytest.mark.parametrize("tau", [1e-6, 0.5])
@pytest.mark.parametrize("loss", [nt_xent, composed.nt_xent])
def test_a_batch_of_one_has_no_negatives_and_zero_loss(loss, tau, xp):
    assert not any(value.any() for value in gradients(loss, views(1, 3), tau, xp, True))


def test_nan_in_the_input_raises():
    z1, z2 = views(4, 3)
    z1[2, 1] = np.nan
    for call in (lambda: nt_xent(z1, z2, 0.5), lambda: info_nce(z1, z2, z2, 0.5), lambda: clip_loss(z1, z2, 0.5)):
        with pytest.raises(FloatingPointError, match="length of a row is not finite .* look for NaN in the input"):
            call()


def test_integers_are_refused():
    with pytest.raises(TypeError, match="nt_xent: z1 must be a floating-point array, float32 or float64, got int64"):
        nt_xent(np.ones((4, 3), dtype=np.int64), np.ones((4, 3)), 0.5)


def test_an_empty_set_of_negatives_is_refused():
    z1, z2 = views(4, 3)
    with pytest.raises(ValueError, match=r"info_nce: expected negatives \(M, d\) with M >= 1 and d = 3"):
        info_nce(z1, z2, np.zeros((0, 3)), 0.5)


def test_keys_off_the_tape_get_no_gradient():
    """In MoCo, the queue and the momentum encoder's keys are constants."""
    q, k = views(4, 3)
    query, keys, queue = Tensor(q, requires_grad=True), Tensor(k), Tensor(k)
    info_nce(query, keys, queue, 0.2).backward()
    assert query.grad is not None and keys.grad is None and queue.grad is None


def test_composed_and_fused_agree_through_an_encoder():
    """The gradient of a linear encoder's weight is the same through either loss."""
    rng = np.random.default_rng(0)
    x1, x2, w0 = rng.standard_normal((6, 5)), rng.standard_normal((6, 5)), rng.standard_normal((5, 3))
    grads = []
    for loss in (nt_xent, composed.nt_xent):
        w = Tensor(w0, requires_grad=True)
        loss(ops.matmul(x1, w), ops.matmul(x2, w), 0.4).backward()
        grads.append(w.grad)
    np.testing.assert_allclose(*grads, rtol=1e-12, atol=1e-14)


def test_the_public_names_are_these():
    assert set(contrastive.__all__) == {
        "SIGLIP_BIAS", "SIGLIP_LOGIT_SCALE", "alignment_loss", "barlow_twins", "choice_accuracy", "clip_loss",
        "composed", "cosine_similarity", "dcl", "info_nce", "info_nce_from_scores", "l2_normalize",
        "log_softmax", "mises_fisher_weights", "negative_cosine", "nt_xent", "semi_hard_negatives", "siglip", "softmax",
        "sup_con", "triplet", "uniformity_loss", "vicreg"}
