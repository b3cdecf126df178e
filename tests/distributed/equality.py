"""Losses and layers on several processes agree with one process: values, gradients and running averages, in float64 and
float32.

Prints {name: the largest difference, relative to the largest entry}.
"""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np

from minicl import Tensor, get_backend
from minicl.backend import to_device, to_host
from minicl.contrastive import (alignment_loss, barlow_twins, clip_loss, dcl, info_nce, info_nce_from_scores, l2_normalize,
                                log_softmax, mises_fisher_weights, negative_cosine, nt_xent, pairs, semi_hard_negatives,
                                siglip, sup_con, triplet, uniformity_loss, vicreg)
from minicl.distributed import ALONE, all_gather, get_world, mean_of
from minicl.nn import BatchNorm, Dropout
from minicl.ops import concat, where

world = get_world(sys.argv[1] if len(sys.argv) > 1 else "numpy")
xp = get_backend(sys.argv[1] if len(sys.argv) > 1 else "numpy")
size = world.size
part = world.part
errors: dict[str, float] = {}


def note(name, got, expected, scale=1e-300):
    got, expected = (np.asarray(to_host(x), dtype="float64") for x in (got, expected))
    assert got.shape == expected.shape and np.isfinite(got).all() and np.isfinite(expected).all(), (name, got, expected)
    error = np.abs(got - expected).max(initial=0) / max(np.abs(expected).max(initial=0), scale)
    errors[name] = max(errors.get(name, 0.0), float(error))


def note_loss(name, loss, rows, scalars=(), constants=None, dtype="float64", scale=1e-300):
    """Compare loss(*rows, *scalars, world=...) and its gradients; `constants` are options with one entry per row, and `scale`
    is the size of a gradient's terms where they cancel."""
    results = []
    for w in (ALONE, world):
        leaves = [Tensor(to_device(x[w.part].astype(dtype), xp), requires_grad=True) for x in rows]
        learned = [Tensor(to_device(np.asarray(x, dtype=dtype), xp), requires_grad=True) for x in scalars]
        value = loss(*leaves, *learned, world=w, **{key: x[w.part] for key, x in (constants or {}).items()})
        value.backward()
        results.append((value.item(), [x.grad for x in leaves], [w.sum(x.grad) for x in learned]))
    (expected, row_gradients, scalar_gradients), (got, mine, summed) = results
    note(name, got, expected)
    assert world.alike(got), name
    for g, h in zip(mine, row_gradients):
        note(name + " gradient", g, to_host(h)[part], scale)
    for x, g, h in zip(scalars, summed, scalar_gradients):
        note(name + " scalar", g, h, scale=abs(results[0][0] / x))           # its terms may cancel: the loss's scale


def losses(N, d, rng, dtype="float64"):
    z1, z2, z3 = rng.standard_normal((3, N, d))
    z2 += z1
    ids = rng.integers(0, max(2, N // 3), N)
    weights = rng.random(N)
    on = lambda x: to_device(x, xp)                                          # constants that a loss expects on the device
    for tau in (0.5, 0.07) + (1e-3,) * (dtype == "float64"):
        note_loss("nt_xent", nt_xent, (z1, z2), (tau,), dtype=dtype)
        note_loss("dcl", dcl, (z1, z2), (tau,), dtype=dtype)
    note_loss("nt_xent, fixed tau", lambda a, b, world: nt_xent(a, b, 0.2, world=world), (z1, z2), dtype=dtype)
    note_loss("nt_xent, ids", nt_xent, (z1, z2), (0.2,), {"ids": ids}, dtype)
    note_loss("dcl, ids", dcl, (z1, z2), (0.2,), {"ids": ids}, dtype)
    note_loss("dcl, weights", lambda a, b, tau, world, weights: dcl(a, b, tau, weights=on(weights.astype(dtype)), world=world),
              (z1, z2), (0.2,), {"weights": weights}, dtype)
    note_loss("uniformity", uniformity_loss, (z1,), dtype=dtype)
    note_loss("alignment", alignment_loss, (z1, z2), dtype=dtype)
    note_loss("alignment, alpha 1", lambda a, b, world: alignment_loss(a, b, alpha=1, world=world), (z1, z2), dtype=dtype)
    for scale in (math.log(1 / 0.07), math.log(100)):
        note_loss("clip_loss", clip_loss, (z1, z2), (scale,), dtype=dtype)
        note_loss("siglip", siglip, (z1, z2), (scale, -10.0), dtype=dtype)
        for name, loss, scalars in (("clip_loss, captions", clip_loss, (scale,)), ("siglip, captions", siglip, (scale, -3.0))):
            note_loss(name, lambda *x, caption_ids, loss=loss, **o: loss(*x, caption_ids=on(caption_ids), **o), (z1, z2), scalars,
                      {"caption_ids": ids}, dtype)
    note_loss("sup_con", sup_con, (z1,), (0.1,), {"labels": ids}, dtype)
    note_loss("sup_con, base_temperature", lambda z, tau, **o: sup_con(z, tau, base_temperature=0.3, **o), (z1,), (0.1,),
              {"labels": ids}, dtype)
    note_loss("info_nce", lambda a, b, n, tau, world: info_nce(a, b, all_gather(n, world=world), tau, world=world),
              (z1, z2, z3), (0.1,), dtype=dtype)
    note_loss("info_nce_from_scores", lambda s, tau, world: info_nce_from_scores(
        s, xp.arange(N)[world.part] % d, tau, world=world), (z1,), (0.1,), dtype=dtype)
    note_loss("barlow_twins", barlow_twins, (z1, z2), dtype=dtype)
    note_loss("barlow_twins", barlow_twins, (z1 + 1e3, z2), dtype=dtype)
    note_loss("vicreg", vicreg, (z1, z2), dtype=dtype)
    note_loss("triplet", triplet, (z1, z2, z3), dtype=dtype)
    note_loss("negative_cosine", lambda a, world, target: negative_cosine(a, Tensor(on(target.astype(dtype))), world=world), (z1,),
              constants={"target": z2}, dtype=dtype)


rng = np.random.default_rng(0)
losses(6 * size, 3, rng)
pairs.tile_size = lambda xp, n, rows=None: 7  # several tiles per process, of different shapes
u = xp.asarray(rng.standard_normal((40, 2)))
assert len(pairs.SymmetricPairs(u, 0.1, cache=True).blocks) == len(pairs.CrossPairs(u, u, 1.0, None, cache=True).blocks) == 6
for pairs.CACHE_BYTES in (2**24, 0):
    losses(20 * size, 8, rng)
for _ in range(8):                                                           # drawn: rows, tiles, cached bytes
    n = int(rng.integers(2, 14))
    d = int(rng.integers(2, 7))
    tile = int(rng.integers(1, 16))
    pairs.CACHE_BYTES = 2**int(rng.integers(25))
    pairs.tile_size = lambda xp, n, rows=None: tile
    z = rng.standard_normal((2, n * size, d))
    tau = float(10**rng.uniform(-2.5, 0))
    for loss, scalars in ((nt_xent, (tau,)), (dcl, (tau,)), (clip_loss, (float(rng.uniform(0, 4.6)),))):
        note_loss("drawn", loss, z, scalars)
    note_loss("drawn", uniformity_loss, z[:1])
for loss, scalars in ((nt_xent, (0.2,)), (clip_loss, (2.0,)), (dcl, (0.2,)), (siglip, (2.0, -1.0)), (vicreg, ()), (barlow_twins, ())):
    cancels = loss is barlow_twins and size == 2             # batch norm of two values leaves a gradient of the size of eps
    note_loss("a row each", loss, rng.standard_normal((2, size, 3)), scalars, scale=1.0 if cancels else 1e-300)
if xp is np:
    page = (Path(__file__).parents[2] / "docs/gradients/all_gather.md").read_text()
    names = {"np": np, **{f.__name__: f for f in (all_gather, mean_of, concat, where, l2_normalize, log_softmax)}}
    exec(re.search(r"^```py\n(.*?)^```$", page, re.M | re.S)[1], names)
    for n in (1, 5):
        z = rng.standard_normal((2, n * size, 3))
        note_loss("the page's nt_xent", names["nt_xent_of_all"], z, (0.3,))
        note("the page's nt_xent", names["nt_xent_of_all"](*(Tensor(x) for x in z), 0.3, ALONE).item(), nt_xent(*z, 0.3).item())
exact = errors
errors = {}
losses(16 * size, 8, rng, "float32")
single, errors = errors, exact

# ---------------------------------------------------------------- a batch that is not a multiple of the processes
rows = xp.asarray(np.random.default_rng(world.rank).standard_normal((4 + (world.rank == 0), 3)))
labels = np.arange(len(rows)) % 2
for loss, arguments, options in (
        (nt_xent, (rows, rows, 0.2), {}), (dcl, (rows, rows, 0.2), {}), (uniformity_loss, (rows,), {}),
        (alignment_loss, (rows, rows), {}), (clip_loss, (rows, rows, 1.0), {}), (siglip, (rows, rows, 1.0, -1.0), {}),
        (sup_con, (rows, 0.2), {"labels": labels}), (info_nce, (rows, rows, rows, 0.2), {}), (barlow_twins, (rows, rows), {}),
        (info_nce_from_scores, (Tensor(rows), labels), {}), (vicreg, (rows, rows), {}), (triplet, (rows, rows, rows), {}),
        (negative_cosine, (Tensor(rows), Tensor(rows)), {}), (semi_hard_negatives, (rows, rows), {}),
        (mises_fisher_weights, (rows, rows), {}), (all_gather, (rows,), {})):
    try:
        loss(*arguments, **options, world=world)
    except ValueError as error:
        assert "expected the same number of rows on each of" in str(error) and "got 4 to 5; use a batch that is a multiple" in str(error)
    else:
        raise AssertionError(f"{loss.__name__} took 5 rows of one process and 4 of another")

# ---------------------------------------------------------------- mining and weights, without a gradient
z = rng.standard_normal((2, 10 * size, 4))
ids = rng.integers(0, 4, 10 * size)
for labels in (None, ids):
    expected = semi_hard_negatives(xp.asarray(z[0]), xp.asarray(z[1]), ids=labels)
    got = semi_hard_negatives(xp.asarray(z[0][part]), xp.asarray(z[1][part]), ids=None if labels is None else labels[part],
                              world=world)
    assert np.array_equal(to_host(got), to_host(expected)[part])
note("mises_fisher_weights", mises_fisher_weights(xp.asarray(z[0][part]), xp.asarray(z[1][part]), world=world),
     to_host(mises_fisher_weights(*map(xp.asarray, z)))[part])

# ---------------------------------------------------------------- layers
for shape in ((6 * size, 5), (7, 7, 6 * size, 16), (3, 3, 4 * size, 40)):
    for mean, splits in ((0.0, 1), (1e3, 1), (0.0, size), (0.0, 2 * size)):
        if shape[-2] % splits or shape[-2] < 2 * splits:
            continue
        x = rng.standard_normal(shape) * 2 + mean
        g = rng.standard_normal(shape)
        results = []
        for w in (ALONE, world):
            layer = BatchNorm(shape[-1], relu=True, splits=splits).astype("float64").to(xp).across(w)
            layer.weight.data[:] = xp.linspace(0.5, 2, shape[-1])
            layer.bias.data[:] = 0.1
            leaf = Tensor(to_device(np.ascontiguousarray(x[..., w.part, :]), xp), requires_grad=True)
            y = layer(leaf)
            y.backward(to_device(np.ascontiguousarray(g[..., w.part, :]), xp))
            results.append((y.data, leaf.grad, w.sum(layer.weight.grad), w.sum(layer.bias.grad), layer.running_mean.data,
                            layer.running_var.data))
        name = "batch norm, " + (f"{'as many' if splits == size else 'twice as many'} groups" if splits > 1 else f"mean {mean:g}")
        for k, (expected, got) in enumerate(zip(*results)):
            note(name, got, to_host(expected)[..., part, :] if k < 2 else expected)
        assert world.alike(*results[1][2:]), name

for shape, axis, views in (((8 * size, 5), None, 1), ((8 * size, 5), None, 2), ((3, 4, 8 * size, 2), 2, 2)):
    masks = []
    for w in (ALONE, world):
        layer = Dropout(0.4, rng=np.random.default_rng(0), batch_axis=axis).across(w)
        rows = [length // (w.size if k == (axis or 0) else 1) for k, length in enumerate(shape)]
        masks.append(np.moveaxis(to_host(layer(Tensor(xp.ones(rows))).data), axis or 0, 0))
    whole = masks[0].reshape(views, -1, *masks[0].shape[1:])[:, part]
    assert np.array_equal(masks[1], whole.reshape(masks[1].shape)), (shape, axis, views)
try:
    Dropout(0.5, rng=rng).across(world)(Tensor(xp.ones((2, 3, 4))))
except ValueError as error:
    assert "batch_axis" in str(error)
else:
    raise AssertionError("Dropout guessed the batch's axis")

exact = {name: max(world.comm.allgather(error)) for name, error in exact.items()}
single = {name: max(world.comm.allgather(error)) for name, error in single.items()}
if world.rank == 0:
    print(json.dumps({"size": size, "exact": exact, "single": single}))
