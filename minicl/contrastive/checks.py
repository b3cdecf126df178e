"""Checks of the arguments that contrastive losses share. Values on a GPU are not read, which would wait for it."""

import functools
from collections.abc import Callable

import numpy as np

from ..autograd import Tensor
from ..backend import is_array, on_host, refuse_capture
from ..checks import is_number, require_within
from ..distributed import ALONE
from ..no_grad import no_grad
from ..signature import is_plain_array


def checked_by(fused: str) -> Callable:
    """Make a composed loss check its arguments as the fused loss of this name in its file does: by calling that first."""
    def decorate(composed):
        @functools.wraps(composed)
        def checked(*inputs, **options):
            with no_grad():
                composed.__globals__[fused](*inputs, **options)
            return composed(*inputs, **options)

        return checked

    return decorate


def require_scalar(name, argument, value, interval="(-inf, inf)", hint=""):
    """Raise ValueError unless value is one number in the interval: a Python number, a 0-d array or Tensor."""
    value = value.data if isinstance(value, Tensor) else value
    if is_array(value):
        if value.ndim != 0:
            raise ValueError(f"{name}: {argument} must be one number, got shape {value.shape}")
        if not on_host(value):
            return
        value = float(value)
    require_within(name, interval, hint, **{argument: value})


def require_temperature(name, tau):
    """Raise ValueError unless tau is within 1e-30 and 1e20: 1/tau is finite in float32, and EXCLUDED / tau large."""
    learned = not is_number(tau)
    require_scalar(name, "tau", tau, "[1e-30, 1e20]", "learn its logarithm and take exp, which stays above 0" if learned
                   else "usual temperatures are 0.05 to 1")


def require_logit_scale(name, logit_scale):
    """Raise ValueError unless logit_scale is a number <= log 100."""
    require_scalar(name, "logit_scale", logit_scale, "(-inf, 4.60518]",
                   "it is the logarithm of 1/tau, math.log(1 / 0.07) for a temperature of 0.07, and at most log 100; "
                   "if it is learned, call CLIP.clamp_logit_scale() after each step")


def require_arrays(name, **values):
    """Raise TypeError unless all are arrays or Tensors: a check for functions that are not ops."""
    for argument, x in values.items():
        if not (isinstance(x, Tensor) or is_array(x)):
            raise TypeError(f"{name}: {argument} must be an array or a Tensor, got {type(x).__name__}"
                            f"{'; numpy.asarray makes one' if isinstance(x, (list, tuple)) else ''}")


def require_pairs(name, first, second, at_least=1, because="the negatives are the other items of the batch", world=ALONE):
    """Raise ValueError unless the two views are (N, d) arrays of one shape, with N >= at_least."""
    if len(first.shape) != 2 or first.shape != second.shape:
        raise ValueError(f"{name}: expected two arrays (N, d) of the same N items, got {first.shape} and {second.shape};"
                         " row i of one must belong to row i of the other")
    require_batch(name, first, at_least, because, world)


def require_batch(name, z, at_least, because="", world=ALONE):
    """Raise ValueError unless z is an (N, d) array with N >= at_least and d >= 1, or each process's part of one."""
    if len(z.shape) != 2 or len(z) * world.size < at_least or z.shape[1] < 1:
        raise ValueError(f"{name}: expected (N, d) with N >= {at_least} and d >= 1, got {z.shape}"
                         f"{because and ': '}{because}")
    world.require_rows(name, len(z))
    world.require_part(name, z.data if isinstance(z, Tensor) else z)


def require_ids(name, ids, count, argument="ids"):
    """Raise ValueError unless ids is a host array of `count` integers."""
    refuse_capture(f"{name} takes {argument} from the host")
    if not (isinstance(ids, np.ndarray) and is_plain_array(ids) and ids.shape == (count,) and ids.dtype.kind in "iu"):
        got = f"{type(ids).__module__} {type(ids).__name__}" + (
            f" of shape {ids.shape} and dtype {ids.dtype}" if is_array(ids) else "")
        raise ValueError(f"{name}: {argument} must be a host (numpy) array of {count} integers, one per item, equal for "
                         f"items that are not negatives of each other, got {got}; class labels can be used")


def require_negatives(name, argument, ids, *others):
    """Raise ValueError if all of several ids (N,), and others, are equal. A single item may be without a negative."""
    if len(ids) > 1 and all((each == ids[0]).all() for each in (ids, *others)):
        raise ValueError(f"{name}: all {len(ids)} {argument} are equal, so no item has a negative; use batches of several "
                         "classes or captions")


def gather_ids(name, ids, count, world):
    """The ids of all processes, after require_ids and require_negatives."""
    require_ids(name, ids, count)
    ids = world.all_gather(ids)
    require_negatives(name, "ids", ids)
    return ids


def require_query_ids(name, ids, negative_ids, N, M, world):
    """None, or (ids, negative_ids) if either is given. Raise ValueError unless both are host arrays of N and M integers,
    and not all equal for N > 1."""
    if ids is None and negative_ids is None:
        return None
    if ids is None or negative_ids is None:
        raise ValueError(f"{name}: give both ids (N,) of the queries and negative_ids (M,) of the negatives, or neither; "
                         f"{'ids' if ids is None else 'negative_ids'} is missing")
    require_ids(name, ids, N)
    require_ids(name, negative_ids, M, "negative_ids")
    require_negatives(name, "ids and negative_ids", world.all_gather(ids), negative_ids)
    return ids, negative_ids


def require_caption_ids(name, caption_ids, N, world):
    """Raise ValueError unless caption_ids is None or N integers, not all equal for N > 1."""
    if caption_ids is not None and not (is_plain_array(caption_ids) and caption_ids.shape == (N,)
                                        and caption_ids.dtype.kind in "iu"):
        got = f"{caption_ids.dtype} of shape {caption_ids.shape}" if is_array(caption_ids) else repr(caption_ids)
        raise ValueError(f"{name}: caption_ids must be {N} integers, one per pair, got {got}; compute them with "
                         "data.same_caption_ids(token ids)")
    if caption_ids is not None and on_host(caption_ids):
        require_negatives(name, "caption_ids", world.all_gather(caption_ids))
