"""Optimizers over one flat buffer, and learning-rate schedules.

An optimizer moves all parameters into one array and all gradients into another, and leaves each parameter a
view of its part. An update is then the formula, once, over everything: a few passes on the CPU, a few launches
on a GPU. Weight decay applies to matrices and kernels, not to biases and norm parameters (one axis), which come
last in the buffer: "decayed" is a slice.
"""

import math

import numpy as np

from .backend import array_module, fused, parallel_for, to_device, to_host
from .tensor import mark_changed

SLICE = 2**17      # entries updated at a time on a CPU: few enough for the cache, enough to be worth a thread's while


class Optimizer:
    """What all optimizers share. Subclasses name their state buffers and define _update(part, lr).

    named_parameters  [(name, Parameter), ...], as Module.named_parameters() gives them
    lr                default learning rate; step(lr) overrides it, which is how schedules are used
    """

    state_names = ()

    def __init__(self, named_parameters, lr, *, weight_decay=0.0):
        if not (lr > 0 and weight_decay >= 0):               # so written that NaN fails too
            raise ValueError(f"{type(self).__name__}: expected lr > 0 and weight_decay >= 0, "
                             f"got lr={lr}, weight_decay={weight_decay}")
        named_parameters = list(named_parameters)
        if not all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
                   for item in named_parameters):
            raise TypeError(f"{type(self).__name__}: expected (name, Parameter) pairs; pass model.named_parameters()")
        parameters = sorted(named_parameters, key=lambda item: item[1].ndim < 2)     # stable: decayed ones first
        if not parameters:
            raise ValueError(f"{type(self).__name__}: got no parameters; pass model.named_parameters()")
        dtypes = sorted({str(p.dtype) for _, p in parameters})
        if len(dtypes) > 1:
            raise ValueError(f"{type(self).__name__}: expected parameters of one dtype, got {' and '.join(dtypes)}; "
                             "convert the model with model.astype()")
        self.names, self.parameters = zip(*parameters)
        self.lr, self.weight_decay, self.steps = lr, weight_decay, 0
        xp = self.xp = array_module(self.parameters[0].data)
        size = sum(p.size for p in self.parameters)
        self.values = xp.concatenate([p.data.reshape(-1) for p in self.parameters])
        self.grads = xp.zeros(size, dtype=self.values.dtype)
        self.decayed = sum(p.size for p in self.parameters if p.ndim >= 2)
        self.views, start = [], 0
        for p in self.parameters:
            part = slice(start, start + p.size)
            p.data, p.grad = self.values[part].reshape(p.shape), self.grads[part].reshape(p.shape)
            self.views.append((part, p.data, p.grad))
            start += p.size
        self.state = {name: xp.zeros_like(self.values) for name in self.state_names}

    def zero_grad(self):
        self.grads[...] = 0

    def step(self, lr=None):
        """One update from the gradients that backward() has added up since zero_grad()."""
        for name, p, (_, data, grad) in zip(self.names, self.parameters, self.views):
            if p.data is not data or p.grad is not grad:
                raise RuntimeError(f"{type(self).__name__}: {name} no longer views the optimizer's buffer; make the "
                                   "optimizer after model.to() and model.astype(), only one a parameter, and clear "
                                   "gradients with zero_grad()")
        self.steps += 1
        self._step(float(self.lr if lr is None else lr))         # a NumPy float64 would promote float32
        mark_changed(zip(self.names, self.parameters), f"{type(self).__name__}.step()")

    def _step(self, lr):
        """Apply _update to slices, none of which straddles the end of the decayed part."""
        for start, stop, decay in ((0, self.decayed, self.weight_decay), (self.decayed, self.values.size, 0.0)):
            if start < stop:
                parallel_for(self.xp, stop - start, lambda lo, hi: self._update(slice(start + lo, start + hi), lr, decay),
                           SLICE)

    def state_dict(self):
        """{name: host array}: for each moment and each parameter its part, and the step count."""
        return {**{name: to_host(part).copy() for name, part in self._parts()}, "steps": np.array(self.steps)}

    def load_state_dict(self, state):
        parts = dict(self._parts())
        for name, shape in [(name, part.shape) for name, part in parts.items()] + [("steps", ())]:
            if name not in state or state[name].shape != shape:
                raise ValueError(f"{type(self).__name__}: the state has no {name!r} of shape {shape}; "
                                 "it belongs to another optimizer or another model")
        for name, part in parts.items():
            part[...] = to_device(state[name], self.xp)
        self.steps = int(state["steps"])

    def __reduce__(self):
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: its arrays are the model's parameters. Make an "
                        "optimizer for the copied model, and load_state_dict() this one's state_dict()")

    def _parts(self):
        """("momentum.encoder.weight", view), ... of all state."""
        return [(f"{moment}.{name}", array[part].reshape(data.shape)) for moment, array in self.state.items()
                for name, (part, data, _) in zip(self.names, self.views)]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: u <- mu u + g + decay w,  w <- w - lr u.

    nesterov: w <- w - lr (g + decay w + mu u), a look ahead along the new u (Sutskever et al. 2013).
    """

    state_names = ("momentum",)

    def __init__(self, named_parameters, lr, *, momentum=0.9, nesterov=False, weight_decay=0.0):
        if not 0 <= momentum < 1:
            raise ValueError(f"{type(self).__name__}: momentum must be in [0, 1), got {momentum}")
        super().__init__(named_parameters, lr, weight_decay=weight_decay)
        self.momentum, self.nesterov = momentum, nesterov

    def _update(self, part, lr, decay):
        _sgd(self.values[part], self.state["momentum"][part], self.grads[part], lr, decay, self.momentum,
             self.momentum if self.nesterov else None)


@fused
def _sgd(xp, w, u, g, lr, decay, mu, ahead):
    """SGD's update of w and u in place; ahead: mu for Nesterov's look ahead, else None."""
    g = g + decay * w
    u *= mu
    u += g
    w -= lr * (u if ahead is None else g + ahead * u)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1): w <- w - lr m^ / (sqrt(v^) + eps).

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        m^ = m / (1 - b1^t),      v^ = v / (1 - b2^t)

    Weight decay is added to the gradient, as L2 regularisation; AdamW takes it off the weights instead.
    """

    state_names = ("m", "v")
    decoupled = False

    def __init__(self, named_parameters, lr, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        if not all(0 <= b < 1 for b in betas):
            raise ValueError(f"{type(self).__name__}: betas must be in [0, 1), got {betas}")
        super().__init__(named_parameters, lr, weight_decay=weight_decay)
        self.betas, self.eps = betas, eps

    def _update(self, part, lr, decay):
        b1, b2 = self.betas
        _adam(self.values[part], self.state["m"][part], self.state["v"][part], self.grads[part],
              lr / (1 - b1**self.steps), 1 - b1, 1 - b2, 1 / math.sqrt(1 - b2**self.steps), self.eps,
              1 - lr * decay if decay and self.decoupled else None, decay if decay and not self.decoupled else None)


@fused
def _adam(xp, w, m, v, g, rate, new1, new2, correct, eps, keep, pull):
    """Adam's update of w, m and v in place: rate = lr / (1 - b1^t), new = 1 - b, correct = 1 / sqrt(1 - b2^t).

    Weight decay: keep = 1 - lr decay (decoupled), or pull = decay (in the gradient), None where there is none."""
    if keep is not None:
        w *= keep
    if pull is not None:
        g = g + pull * w
    t = g - m                                                                # reused: fresh memory costs a CPU more
    t *= new1
    m += t
    xp.multiply(g, g, out=t)
    t -= v
    t *= new2
    v += t
    xp.sqrt(v, out=t)
    t *= correct                                                             # sqrt(v^)
    t += eps
    step = rate * m
    step /= t
    w -= step


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): w <- (1 - lr decay) w before Adam's update."""

    decoupled = True


class LARS(SGD):
    """Layer-wise adaptive rates for large batches (You et al. 2017): SGD whose step is scaled by each layer's trust

        trust = eta |w| / |g + decay w|,    and 1 where either norm is zero,

    so that a layer of zeros can still leave zero. Biases and norm parameters take plain SGD steps.
    """

    def __init__(self, named_parameters, lr, *, momentum=0.9, weight_decay=1e-6, eta=1e-3):
        super().__init__(named_parameters, lr, momentum=momentum, weight_decay=weight_decay)
        self.eta = eta

    def _step(self, lr):
        layers = [(w, g) for part, w, g in self.views if part.start < self.decayed]
        squares = []
        for w, g in layers:
            g += self.weight_decay * w                                       # the gradients are used up by this
            squares.append([(w * w).sum(), (g * g).sum()])
        if layers:
            trust = _trust(*map(self.xp.stack, zip(*squares)), self.eta)     # (layers,)
            for (_, g), scale in zip(layers, trust):
                g *= scale
        self._update(slice(None), lr, 0.0)


@fused
def _trust(xp, w_squared, g_squared, eta):
    norm_w, norm_g = xp.sqrt(w_squared), xp.sqrt(g_squared)
    nonzero = (norm_w > 0) & (norm_g > 0)                                    # stays on the device: no branch
    return xp.where(nonzero, eta * norm_w / xp.where(nonzero, norm_g, 1), 1)


def warmup_cosine(step, *, total, peak, warmup=0, floor=0.0):
    """Learning rate at `step` (from 0): linear from 0 to peak over `warmup` steps, then half a cosine down to floor.

    Source: Loshchilov & Hutter 2017 (SGDR, eq. 5, one period); Goyal et al. 2017 for the warmup.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warmup_cosine: expected 0 <= warmup < total, got warmup={warmup}, total={total}")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (total - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
