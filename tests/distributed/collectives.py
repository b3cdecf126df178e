"""Every method of World on the processes of mpirun agrees with its definition."""

import json
import sys
import time

import numpy as np

from minicl import Tensor, get_backend
from minicl.backend import available_cores, to_host
from minicl.distributed import ALONE, all_gather, get_world, mean_of

cores = available_cores()
world = get_world(*sys.argv[1:])
xp = get_backend(*sys.argv[1:2])
assert available_cores() == max(1, cores // world.size)     # all on this machine, not bound to cores
size = world.size
rank = world.rank
part = world.part


def same(got, expected):
    return type(got) is type(expected) and np.array_equal(to_host(got), to_host(expected))


for dtype in ("float32", "float64", "int32", "int64"):
    for shape in ((6 * size, 2), (6 * size,), (size, 1, 3)):
        x = xp.asarray(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
        views = xp.concatenate([x[part], x[part] + 100, x[part] + 200])
        assert same(world.all_gather(x[part]), x)
        assert same(world.all_gather(views), xp.concatenate([x, x + 100, x + 200]))
        assert same(world.rows(world.all_gather(views)), views)
        assert same(world.rows(x), x[part])
        total = sum(range(1, size + 1))
        assert same(world.reduce_scatter(x * (rank + 1)), x[part] * total)
        assert same(world.reduce_scatter(world.all_gather(views) * (rank + 1)), views * total)
        y = x * (rank + 1)
        assert world.sum(y) is not y and same(world.sum(y), x * total)
        assert world.all_reduce(y) is y and same(y, x * total)
odd = xp.arange(3 * size)                                   # a chunk that does not hold whole views
assert same(world.rows(odd), odd[part]) and same(world.all_gather(odd[part]), odd)
assert world.sum(np.float32(2)) == 2 * size and world.sum(np.float32(2)).dtype == np.float32
assert world.any(rank == size - 1) and not world.any(False)
assert world.mean(np.float64(rank)) == (size - 1) / 2
assert world.alike(x, 3.0, "same") and not world.alike(x, float(rank)) and not world.alike(np.full(3, rank))
assert world.share({"of": rank}) == {"of": 0}
for wrong in (xp.zeros((4, 4))[:, 0], xp.zeros(2, dtype=bool)):
    try:
        world.all_reduce(wrong)
    except ValueError as error:
        assert "contiguous" in str(error)
    else:
        raise AssertionError(f"all_reduce took {wrong.dtype} {wrong.flags}")
started = time.process_time()
if rank == 0:
    time.sleep(0.6)                                          # as in an evaluation
world.wait()
assert time.process_time() - started < 0.2                  # waiting processes sleep

z = np.random.default_rng(0).standard_normal((4 * size, 3))            # its loss couples all rows
weights = xp.asarray(np.random.default_rng(1).standard_normal(z.shape))


def loss_of(rows, w, mine):
    return mean_of((all_gather(rows, world=w).sum(axis=0) * rows * weights[mine]).mean(), world=w)


whole, mine = Tensor(xp.asarray(z), requires_grad=True), Tensor(xp.asarray(z[part]), requires_grad=True)
one = loss_of(whole, ALONE, slice(None))
one.backward()
shared = loss_of(mine, world, part)
shared.backward()
error = max(abs(shared.item() - one.item()), np.abs(to_host(mine.grad) - to_host(whole.grad)[part]).max())
if rank == 0:
    print(json.dumps({"size": size, "engine": type(world).__name__, "error": float(error)}))
