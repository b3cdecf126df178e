"""Optimizers over one flat buffer, and learning-rate schedules.

An optimizer moves all parameters into one array and all gradients into another; each parameter becomes a view. An update
then applies the formula once, to everything. Weight decay applies to matrices and kernels, not to biases and norm
parameters (one axis), which come last in the buffer, so the decayed parameters are one slice.

A parameter without a gradient is neither decayed nor moved: one that no backward() has reached since zero_grad(), as in
PyTorch, or one that is frozen (requires_grad False), whenever it was frozen. Fine-tuning:

    model.encoder.freeze()                               # fixes weights and running averages, turns dropout off
    optimizer = AdamW(model, lr=1e-3)                    # trains the rest; after unfreeze() everything
"""

import itertools
import math
import warnings
from collections.abc import Iterable

import numpy as np

from .autograd import Tensor
from .backend import (Number, array_module, each_step, follow, for_arrays, fused, on_host, parallel_for, refuse_capture,
                      sum_of_squares, to_device, to_host, weights)
from .checks import Sealed, require_integers, require_within
from .finite_gradients import require_finite_gradients
from .nn import Module, Parameter
from .nn.parts import noted
from .nn.state import require_state
from .nn.structure import Structure, named_parameters, require_views
from .signature import accepts_other_names, by_known_names
from .tensor import clock, mark_changed, place, region, register_gradient, watch
from .typing import Array, HostArray

SLICE = 2**16      # entries updated at a time on a CPU: few enough for the cache, enough for a thread


class Optimizer(Sealed):
    """Base class. Subclasses name their state buffers, and define _numbers(lr, decay, t) and _update(part, *numbers).
    What is computed from numbers alone, such as 1 - beta, belongs in _numbers().

    model  a Module, or (name, Parameter) pairs, for part of a model or several; gradients they have count
    lr     default learning rate; step(lr) overrides it, for schedules
    steps  number of steps taken; only step() and load_state_dict() change it. A frozen parameter takes none: each is counted
    world  the processes whose gradients step() adds up: the model's (see Module.across); for pairs set it afterwards

    On the CPU step() raises FloatingPointError and changes nothing if the gradient, including its decay (SGD, Adam), is
    not finite, or the sum of its squares overflows. On a GPU, which it does not wait for, the weights and the next
    loss become NaN. If the Module gains, loses or replaces a parameter, step() raises RuntimeError.

    >>> from minicl import nn
    >>> model = nn.Linear(3, 2, rng=np.random.default_rng(0))
    >>> optimizer = AdamW(model, lr=1e-3, weight_decay=0.01)
    >>> loss = model(np.ones((4, 3), "float32")).sum()
    >>> optimizer.zero_grad()
    >>> loss.backward()
    >>> optimizer.step()
    """

    _setting_ranges = {"lr": "[0, inf)", "weight_decay": "[0, inf)", "momentum": "[0, 1)", "nesterov": "bool",
                       "betas": "two in [0, 1)", "eps": "(0, inf)", "eta": "(0, inf)"}
    state_names: tuple[str, ...] = ()
    _set_last = "_known"                                         # by __init__
    scales_gradients = decay_in_gradient = False                 # whether _step changes the gradients; _update adds decay w
    steps = property(lambda self: self._steps)
    is_pending = property(lambda self: not self._used and bool(self.grads.any()), doc="Whether gradients wait for step().")
    world = property(lambda self: self.model.world, lambda self, world: self.model.across(world))

    def __new__(cls, *args, **options):
        by_known_names(cls.__name__, cls.__init__, args, options)            # raises, with the nearest one
        return noted(super().__new__(cls))

    def __init__(self, model: Module | Iterable[tuple[str, Tensor]], lr: float, *, weight_decay: float = 0.0):
        given = {*vars(self)}                                    # by a subclass
        require_within(self, "(0, inf)", lr=lr)                  # later also 0, as at the end of a schedule
        self.lr, self.weight_decay, self._steps = lr, weight_decay, 0
        self._stepped, self._used = 0, False                     # the time of the last step; the gradients, by a step
        parameters = sorted(named_parameters(type(self).__name__, model), key=lambda item: item[1].ndim < 2)
        self.names, self.parameters = zip(*parameters)           # the sort is stable: decayed ones first
        self.structure = Structure(type(self).__name__, model, parameters, Parameter)
        self.model = model if isinstance(model, Module) else Module()    # its processes add up their gradients
        xp = self.xp = array_module(self.parameters[0].data)
        self.values = xp.concatenate([p.data.reshape(-1) for p in self.parameters])
        self.grads = xp.concatenate([(xp.zeros_like(p.data) if p.grad is None else p.grad).ravel() for _, p in parameters])
        self.views, start = [], 0
        for p in self.parameters:
            part = slice(start, start + p.size)
            place(p, self.values[part].reshape(p.shape))
            p._grad = self.grads[part].reshape(p.shape)
            self.views.append((part, p.data, p.grad))
            p.reached = False                                    # _reached() looks at gradients from before
            start += p.size
        watch(self.parameters)
        self.state = {name: xp.zeros_like(self.values) for name in self.state_names}
        for array in (self.grads, *self.state.values()):
            register_gradient(array)
        self.missed = np.zeros(len(self.names), dtype="int64")           # steps in which each parameter was not moved
        self._plan([p.requires_grad for p in self.parameters])
        self._known = {"_known", *vars(self)} - given            # else a subclass's, see checkpoint.settings

    def zero_grad(self) -> None:
        """Set all gradients to 0, in place: to keep a p.grad, copy it."""
        require_views(self)
        self.grads[...] = 0
        each_step(self.grads, self._forget)

    def _forget(self):
        for p in self.parameters:
            p.reached = False
        self._used = False

    def step(self, lr: float | None = None, *, clip_grad_norm: float | None = None) -> Array | None:
        """One update from the gradients that backward() has added up since zero_grad().

        clip_grad_norm  first scale the gradients by min(1, clip_grad_norm / |g|), |g| the norm over all trained parameters
                        and processes; and return |g|, an array (), like PyTorch's clip_grad_norm_()
        """
        if clip_grad_norm is not None:
            require_within(self, "(0, inf)", clip_grad_norm=clip_grad_norm)
        reached = self._reached()
        each_step(self.values, lambda: self._begin(lr, reached))
        if not self._runs:
            warnings.warn(f"{type(self).__name__}: step() moves nothing, as no backward() has reached its parameters since "
                          "zero_grad(); call zero_grad(), backward() and step() in this order", stacklevel=2)
        for g in self._live_gradients():                         # gradients of frozen parameters are not touched
            self.world.all_reduce(g)
        if on_host(self.values):
            self._require_finite_gradients()
        norm = None if clip_grad_norm is None else self._clip(clip_grad_norm)
        each_step(self.values, self._count)
        self._step(lr)
        return norm

    def _reached(self):
        """Whether each parameter has a gradient: backward() has reached it since zero_grad(), or the caller wrote one."""
        reached = list(*each_step(self.values, lambda: [tuple(p.reached for p in self.parameters)]))
        for k in [] if all(reached) else [k for k, p in enumerate(self.parameters) if p._requires_grad and not p.reached]:
            refuse_capture(f"no gradient has reached {self.names[k]}; freeze() it")
            reached[k] = bool(self.grads[self.views[k][0]].any())
        return reached

    def _begin(self, lr, reached):
        """Check what may have changed since the last step, and plan again if something was frozen."""
        self._rate(lr)
        self.structure.check()
        require_views(self)
        if not any(p._requires_grad for p in self.parameters):
            raise RuntimeError(f"{type(self).__name__}: all its parameters are frozen, so there is nothing to train")
        reached = self.world.any(reached) if self.world.size > 1 else reached                # by one of the processes
        trained = [p._requires_grad and has for p, has in zip(self.parameters, reached)]
        if trained != self._trained:
            self._plan(trained)
        if self._used and (self.world.size > 1 or self.scales_gradients):
            raise RuntimeError(f"{type(self).__name__}: the last step has scaled the gradients, or added them up over the "
                               "processes, so they cannot be used again; call zero_grad() before the next backward()")
        self._used |= self.world.size > 1                        # they are about to be added up
        return [tuple(self._runs)]

    def _rate(self, lr):
        lr = self.lr if lr is None else float(lr) if isinstance(lr, Number) else lr
        require_within(self, "[0, inf)", lr=lr)
        return float(lr)                                         # a NumPy float64 would promote float32

    def _count(self):
        self._steps, self._stepped, self._used = self._steps + 1, next(clock), True
        if self._frozen:
            self.missed[self._frozen] += 1
        mark_changed(itertools.compress(zip(self.names, self.parameters), self._trained), f"{type(self).__name__}.step()",
                     within=self._regions)

    def _clip(self, most):
        if not (live := self._live_gradients()):
            return self.xp.zeros(())
        norm = self.xp.sqrt(sum(sum_of_squares(g, SLICE) for g in live))
        scale = most / self.xp.maximum(norm, most)               # 1 where the norm is at most that; not read
        for g in live:
            self.xp.multiply(g, scale, out=g, dtype=g.dtype)
        return norm

    def _live_gradients(self):
        """Views of the gradients of all trained parameters."""
        return [self.grads[part] for part, _, _ in self._runs] if self._frozen else [self.grads]

    def _plan(self, trained):
        """Group neighbouring trained parameters with equal decay and step count into runs."""
        self._trained, self._runs = trained, []                   # runs: [(slice, whether decayed, steps missed), ...]
        self._frozen = [k for k, is_trained in enumerate(trained) if not is_trained]
        kinds = [(is_trained, p.ndim >= 2, int(n)) for is_trained, p, n in zip(trained, self.parameters, self.missed)]
        for (is_trained, decays, missed), run in itertools.groupby(range(len(kinds)), kinds.__getitem__):
            parts = [self.views[k][0] for k in run]
            if is_trained:
                self._runs.append((slice(parts[0].start, parts[-1].stop), decays, missed))
        self._regions = [region(self.values[part]) for part, _, _ in self._runs]

    def _require_finite_gradients(self):
        require_finite_gradients(self, 4 * SLICE)

    def _step(self, lr):
        """Apply _update to slices of the runs."""
        for part, decays, missed in self._runs:
            numbers = each_step(self.values, lambda decays=decays, missed=missed: self._numbers(
                self._rate(lr), self.weight_decay if decays else 0.0, self.steps - missed))
            numbers = numbers if type(self).__module__ == __name__ else [for_arrays(number) for number in numbers]
            parallel_for(self.xp, part.stop - part.start, lambda lo, hi, start=part.start, numbers=numbers: self._update(
                slice(start + lo, start + hi), *numbers), SLICE)

    def _numbers(self, lr, decay, t):
        """What the formula takes in step number t. Of a captured step only this is computed again."""
        return [lr, decay, t]

    def _update(self, part, *numbers):
        """Move the slice `part` of self.values."""
        raise NotImplementedError(f"{type(self).__name__} defines no _update()")

    def state_dict(self) -> dict[str, HostArray]:
        """{name: host array}: each parameter's part of each moment, and the step counts."""
        self.structure.check()
        return {name: np.array(to_host(part)) for name, part in self._parts()}

    def load_state_dict(self, state: dict[str, HostArray]) -> None:
        """Load a state_dict: moments and step counts, not lr and the other options. Raises ValueError, and changes nothing,
        unless all of it fits."""
        parts = dict(self._parts())
        require_state(type(self).__name__, state, parts, {name: 0 for name in parts if name.startswith("v.")})
        steps = int(state[f"{type(self).__name__}.steps"])
        counts = [int(state[f"steps.{name}"]) for name in self.names]
        if not all(0 <= count <= steps for count in counts):
            raise ValueError(f"{type(self).__name__}: the state's step counts must lie in [0, {steps}], got "
                             f"{min(counts)} to {max(counts)}")
        for name, part in parts.items():
            if part.dtype.kind == "f":
                part[...] = to_device(state[name], self.xp)
        self._steps = steps
        self.missed[...] = [steps - count for count in counts]
        self._plan(self._trained)

    def _parts(self):
        """("momentum.encoder.weight", view), ... of all state."""
        moments = [(f"{moment}.{name}", array[part].reshape(data.shape)) for moment, array in self.state.items()
                   for name, (part, data, _) in zip(self.names, self.views)]
        counts = [(f"steps.{name}", count) for name, count in zip(self.names, self.steps - self.missed)]
        return [*moments, *counts, (f"{type(self).__name__}.steps", np.array(self.steps))]   # so no other class loads it

    def __reduce_ex__(self, protocol):
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: a copy would not update the model. Copy "
                        "the model, make an optimizer for the copy and load_state_dict() this one's state_dict()")


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum mu: u <- mu u + g + decay w,  w <- w - lr u.

    nesterov: w <- w - lr (g + decay w + mu u), a step ahead along the new u (Sutskever et al. 2013); it needs a momentum.
    """

    state_names = ("momentum",)
    decay_in_gradient = True

    def __init__(self, model: Module | Iterable[tuple[str, Tensor]], lr: float, *, momentum: float = 0.0,
                 nesterov: bool = False, weight_decay: float = 0.0):
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(model, lr, weight_decay=weight_decay)

    def _require(self, name, value):
        super()._require(name, value)
        settings = {**vars(self), name: value}
        if settings.get("nesterov") and not settings["momentum"]:
            raise ValueError("SGD: momentum must be in (0, 1) with nesterov, got 0; usual is 0.9")

    def _numbers(self, lr, decay, t):
        return [lr, decay if self.decay_in_gradient else 0.0, self.momentum, self.momentum if self.nesterov else None]

    def _update(self, part, *numbers):
        _sgd(self.values[part], self.state["momentum"][part], self.grads[part], *numbers)


@fused
def _sgd(xp, w, u, g, lr, decay, mu, ahead):
    """SGD's update of w and u in place; ahead: mu for Nesterov's look ahead, else None."""
    g = g + decay * w
    u *= mu                                                                  # u = mu u + g
    u += g
    w -= lr * (u if ahead is None else g + ahead * u)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): w <- w - lr m^ / (sqrt(v^) + eps).

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        m^ = m / (1 - b1^t),      v^ = v / (1 - b2^t)

    Weight decay is added to the gradient, as L2 regularisation; AdamW subtracts it from the weights instead.
    """

    state_names = ("m", "v")
    decay_in_gradient = True

    def __init__(self, model: Module | Iterable[tuple[str, Tensor]], lr: float, *,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        self.betas = tuple(betas) if isinstance(betas, list) else betas
        self.eps = eps
        super().__init__(model, lr, weight_decay=weight_decay)
        self._setting_ranges = {**self._setting_ranges, "eps": f"[{np.finfo(self.values.dtype).tiny}, inf)"}  # less vanishes
        self.eps = eps

    def _numbers(self, lr, decay, t):
        b1, b2 = self.betas
        c = math.sqrt(1 - b2**t)
        return [c * lr / (1 - b1**t), *weights(b1), *weights(b2), max(c * self.eps, float(np.finfo(self.values.dtype).tiny)),
                *((None, None) if not decay else (None, decay) if self.decay_in_gradient else (1 - lr * decay, None))]

    def _update(self, part, *numbers):
        _adam(self.values[part], self.state["m"][part], self.state["v"][part], self.grads[part], *numbers)


@fused
def _adam(xp, w, m, v, g, rate, new1, old1, new2, old2, eps, decay_factor, l2):
    """Adam's update of w, m and v in place, in the order at the end of the paper's section 2, with c = sqrt(1 - b2^t):
    rate = c lr / (1 - b1^t); eps = c times Adam's, but not so small that it vanishes; new and old = weights(b).

    Weight decay: decay_factor = 1 - lr decay (decoupled), or l2 = decay (in the gradient), None where there is none."""
    if decay_factor is not None:
        w *= decay_factor
    if l2 is not None:
        g = g + l2 * w
    t = follow(xp, m, g, new1, old1)                                         # m = b1 m + (1 - b1) g
    xp.multiply(g, g, out=t)                                                 # reuses t: new memory is slower on a CPU
    follow(xp, v, t, new2, old2, out=t)                                      # v = b2 v + (1 - b2) g^2
    xp.sqrt(v, out=t)
    t += eps
    xp.divide(m, t, out=t)
    t *= rate
    w -= t


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): w <- (1 - lr decay) w first, but for biases and norms."""

    decay_in_gradient = False


class LARS(SGD):
    """Layer-wise adaptive rates for large batches: SGD whose step is scaled by each layer's trust ratio

        trust = eta |w| / |g + decay w|,    and 1 where either norm is zero,

    so that a layer of zeros can change. Biases and norm parameters take plain SGD steps. A step scales the gradients in
    place: call zero_grad() before the next backward().

    Source: SimCLR's own code (lars_optimizer.py). You et al. 2017, who proposed it, divide by |g| + decay |w|. Both have lr
    in u, as u <- mu u + lr trust (g + decay w); here it multiplies u, as in SGD, which differs while lr changes.
    """

    scales_gradients = True
    decay_in_gradient = False                                    # _step has added it, and squares in float64

    def __init__(self, model: Module | Iterable[tuple[str, Tensor]], lr: float, *, momentum: float = 0.9,
                 weight_decay: float = 1e-6, eta: float = 1e-3):
        self.eta = eta
        super().__init__(model, lr, momentum=momentum, weight_decay=weight_decay)

    def _step(self, lr):
        layers = [(w, g) for (_, w, g), trained in zip(self.views, self._trained) if trained and w.ndim >= 2]
        squares = []
        each_step(self.values, lambda: [(self.weight_decay, self.eta)])
        for w, g in layers:
            # g = trust (g + decay w)
            g += self.weight_decay * w
            squares.append([sum_of_squares(x.reshape(-1), SLICE) for x in (w, g)])
        if layers:
            largest = float(np.finfo(self.values.dtype).max)
            trust = _trust(*map(self.xp.stack, zip(*squares)), self.eta, largest)                # (layers,) float64
            for (_, g), scale in zip(layers, trust):
                self.xp.multiply(g, scale, out=g, dtype=g.dtype)
        super()._step(lr)


@fused
def _trust(xp, w_squared, g_squared, eta, largest):
    norm_w, norm_g = xp.sqrt(w_squared), xp.sqrt(g_squared)
    nonzero = (norm_w > 0) & (norm_g > 0)                                    # stays on the device: no branch
    return xp.minimum(xp.where(nonzero, eta * norm_w / xp.where(nonzero, norm_g, 1), 1), largest)


@accepts_other_names
def warmup_cosine(step: int, *, total: int, peak: float, warmup: int = 0, floor: float = 0.0) -> float:
    """Learning rate at `step`, from 0 to total: linear from 0 to peak over `warmup` steps, then half a cosine down to floor.

    Source: Loshchilov & Hutter 2017 (SGDR, eq. 5, one period); Goyal et al. 2017 for the warmup.

    >>> [round(warmup_cosine(step, total=6, peak=1.0, warmup=2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    require_integers("warmup_cosine", 0, step=step, total=total, warmup=warmup)
    require_within("warmup_cosine", "[0, inf)", peak=peak, floor=floor)
    if warmup >= total or step > total or floor > peak:
        raise ValueError(f"warmup_cosine: expected warmup < total, step <= total, all in steps, and floor <= peak, got "
                         f"{warmup=}, {step=}, {total=}, {floor=}, {peak=}")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
