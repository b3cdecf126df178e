"""The ops: minicl's differentiable functions, except the contrastive losses, one family a file.

Importing this package also gives Tensors their operators and methods: `x * y` is `mul(x, y)`, and
`x.mean(axis=0)` is `mean(x, axis=0)`, by the table at the end.
"""

from typing import Any

from ..autograd import Tensor
from ..backend import array_module
from .attention import attention
from .conv import conv2d
from .elementwise import (abs, add, add_relu, clip, div, dropout, exp, gelu, leaky_relu, log, maximum, minimum, mul, neg,
                          pow, relu, sigmoid, sqrt, sub, tanh, where)
from .embedding import embedding
from .matmul import linear, matmul
from .normalize import batch_norm, layer_norm
from .pool import avg_pool2d, max_pool2d
from .recurrent import gru
from .reduce import logsumexp, max, mean, sum, var
from .shape import broadcast_to, concat, getitem, pad, reshape, stack, to_pixel_major, transpose

__all__ = """
    abs add add_relu attention avg_pool2d batch_norm broadcast_to clip concat conv2d div dropout embedding exp gelu getitem
    gru layer_norm leaky_relu linear log logsumexp matmul max max_pool2d maximum mean minimum mul neg pad pow relu reshape
    sigmoid sqrt stack sub sum tanh to_pixel_major transpose var where
""".split()


def _shape(arguments):
    """reshape(2, 3) and reshape((2, 3)) mean the same."""
    return arguments[0] if len(arguments) == 1 and not isinstance(arguments[0], int) else arguments


def _transpose(x, *axes):
    if x.ndim == 2 and axes == (0, 1):
        raise ValueError("transpose(0, 1) of two axes changes nothing: it names the axes in their new order, as in NumPy; "
                         "to swap them, as in PyTorch, write x.T")
    return transpose(x, axes=_shape(axes) if axes else None)


def _std(x: Tensor, **options: Any) -> Tensor:
    """sqrt(var(x)), but of a gradient that is 0, not 0/0, where all values are equal."""
    v = var(x, **options)
    varies = array_module(v.data).asarray(v.data > 0)
    return where(varies, sqrt(where(varies, v, 1.0)), v)


for _name, _method in {
    "__add__": add,
    "__radd__": lambda x, y: add(y, x),
    "__sub__": sub,
    "__rsub__": lambda x, y: sub(y, x),
    "__mul__": mul,
    "__rmul__": lambda x, y: mul(y, x),
    "__truediv__": div,
    "__rtruediv__": lambda x, y: div(y, x),
    "__matmul__": matmul,
    "__rmatmul__": lambda x, y: matmul(y, x),
    "__neg__": neg,
    "__pow__": lambda x, exponent: pow(x, exponent=exponent),
    "__getitem__": lambda x, key: getitem(x, key=key),
    "sum": sum, "mean": mean, "max": max, "var": var, "std": _std,
    "exp": exp, "log": log, "sqrt": sqrt, "tanh": tanh,
    "reshape": lambda x, *shape: reshape(x, shape=_shape(shape)),
    "transpose": _transpose,
    "T": property(lambda x: transpose(x)),
}.items():
    setattr(Tensor, _name, _method)
