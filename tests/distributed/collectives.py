"""Every method of World on the processes of mpirun, by its definition."""

import json

import numpy as np

from minicl import Tensor
from minicl.backend import available_cores
from minicl.distributed import all_gather, get_world, mean_of

cores = available_cores()
world = get_world()
assert available_cores() == max(1, cores // world.size)     # all on this machine, bound to no cores
size, rank, part = world.size, world.rank, world.part
for dtype in ("float32", "float64", "int32", "int64"):
    for shape in ((6 * size, 2), (6 * size,), (size, 1, 3)):
        x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        views = np.concatenate([x[part], x[part] + 100, x[part] + 200])
        assert np.array_equal(world.all_gather(x[part]), x)
        assert np.array_equal(world.all_gather(views, 3), np.concatenate([x, x + 100, x + 200]))
        assert np.array_equal(world.rows(world.all_gather(views, 3), 3), views)
        assert np.array_equal(world.rows(x), x[part])
        total = sum(range(1, size + 1))
        assert np.array_equal(world.reduce_scatter(x * (rank + 1)), x[part] * total)
        assert np.array_equal(world.reduce_scatter(world.all_gather(views, 3) * (rank + 1), 3), views * total)
        y = x * (rank + 1)
        assert world.sum(y) is not y and np.array_equal(world.sum(y), x * total)
        assert world.all_reduce(y) is y and np.array_equal(y, x * total)
assert world.sum(np.float32(2)) == 2 * size and world.sum(np.float32(2)).dtype == np.float32
assert world.any(rank == size - 1) and not world.any(False)
assert world.alike(x, 3.0, "same") and not world.alike(x, float(rank)) and not world.alike(np.full(3, rank))
assert world.share({"of": rank}) == {"of": 0}
for wrong in (x[:, :1].T[0] if x.shape[1] > 1 else np.zeros((4, 4))[:, 0], np.zeros(2, bool)):
    try:
        world.all_reduce(wrong)
    except ValueError as error:
        assert "contiguous" in str(error)
    else:
        raise AssertionError(f"all_reduce took {wrong.dtype} {wrong.flags}")
world.wait()

z = np.random.default_rng(0).standard_normal((4 * size, 3))            # mean |sum of all rows * own row|: a loss of all rows
weights = np.random.default_rng(1).standard_normal(z.shape)


def loss_of(rows, w, mine):
    return mean_of((all_gather(rows, world=w).sum(axis=0) * rows * weights[mine]).mean(), world=w)


whole, mine = Tensor(z, requires_grad=True), Tensor(z[part].copy(), requires_grad=True)
one = loss_of(whole, type(world).__mro__[1](), slice(None))
one.backward()
shared = loss_of(mine, world, part)
shared.backward()
error = max(abs(shared.item() - one.item()), np.abs(mine.grad - whole.grad[part]).max())
if rank == 0:
    print(json.dumps({"size": size, "error": error}))
