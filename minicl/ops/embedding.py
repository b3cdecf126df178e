"""Embedding: a table of vectors, looked up by id."""

from ..autograd import op
from ..backend import array_module, scatter_add
from ..signature import Index
from ..typing import Array


@op
def embedding(ids: Index, table: Array):
    """y[...] = table[ids[...]]: ids (...) integers in [0, V), table (V, C) -> (..., C).

    dtable[v] = sum of g over all places whose id is v: a product with the one-hot matrix of the ids, of which only
    the ones are touched. An id of V or more raises on NumPy and wraps silently on CuPy; -1 is the last row on both.
    """
    if table.ndim != 2:
        raise ValueError(f"embedding: expected a table (V, C), got shape {table.shape}")

    def backward(g):
        dtable = array_module(table).zeros_like(table)
        scatter_add(dtable, ids, g)
        return None, dtable

    return table[ids], backward
