"""Embedding: lookup of vectors in a table by id."""

from ..autograd import op
from ..backend import array_module, each_step, read_on_host, scatter_add
from ..signature import Index
from ..typing import Array


@op
def embedding(ids: Index, table: Array):
    """y[...] = table[ids[...]]: ids (...) integers in [0, V), table (V, C) -> (..., C).

    dtable[v] = sum of g over all positions with id v. The id -1 is the last row. Other ids out of range raise IndexError on
    NumPy; on CuPy, where a check would wait for the device, they wrap around.

    >>> minicl.ops.embedding(np.array([2, 0]), np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])).data
    array([[4., 5.],
           [0., 1.]])
    """
    if table.ndim != 2:
        raise ValueError(f"embedding: expected a table (V, C), got shape {table.shape}")
    if (read := read_on_host(ids)) is not None:
        each_step(table, lambda: _require_ids(read(), table.shape))

    def backward(g):
        dtable = array_module(table).zeros_like(table)
        scatter_add(dtable, ids, g)
        return None, dtable

    return table[ids], backward


def _require_ids(ids, shape):
    if ids.size and not (-1 <= ids.min() and ids.max() < shape[0]):
        raise IndexError(f"embedding: ids must be from -1 (the last row) to {shape[0] - 1}, for a table {shape}, "
                         f"got {ids.min()} to {ids.max()}")
