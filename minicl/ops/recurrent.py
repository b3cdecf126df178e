"""A gated recurrent unit over a whole sequence, and its gradient: backpropagation through time.

Each step mixes the last state with new content. Per unit, with gates sigma(v) = 1 / (1 + e^-v) between 0 and 1:

    r = sigma(x_t W_r + b_r + h_{t-1} V_r)              reset: how much of the past enters the new content
    u = sigma(x_t W_u + b_u + h_{t-1} V_u)              update: how much of the past stays
    n = tanh(x_t W_n + b_n + r q),   q = h_{t-1} V_n    new content
    h_t = u h_{t-1} + (1 - u) n

(Cho et al. 2014; with r after the product, as in cuDNN, so that one product gives all three.) The gradient runs
through the steps in reverse. A state affects the loss through its own output, g_t, and through the next step, so with
da and dp the gradients of the terms that x_t and h_{t-1} add before the nonlinearities:

    dh_t = g_t + u_{t+1} dh_{t+1} + dp_{t+1} V^T                             (1)
    da_n = dh_t (1 - u) (1 - n^2)                                            (2)
    da_u = dh_t (h_{t-1} - n) u (1 - u)                                      (3)
    da_r = da_n q r (1 - r)                                                  (4)
    dp   = (da_r, da_u, r da_n)                                              (5)

All steps share the weights, so their gradients are sums over steps, each one product over all rows:

    dx = da W^T,   dW = sum_t x_t^T da_t,   db = sum_t da_t                  (6)
    dV = sum_t h_{t-1}^T dp_t                                                (7)

Where u is near 1, dh passes (1) undamped, so a gated unit carries information over many steps.
Derivation: docs/gradients/gru.md
"""

from ..autograd import op
from ..backend import array_module, column_sums, fused, parallel_for
from ..typing import Array
from .elementwise import CACHED


@op
def gru(x: Array, w: Array, v: Array, b: Array, h0: Array | None = None, *, needs_grad=(True,) * 5):
    """x (T, B, C) -> h (T, B, H), the states after each of T steps of B sequences.

    w (C, 3H), b (3H,)  weights of the input, v (H, 3H)  of the state; columns in the order reset, update, new
    h0 (B, H)           the state before the first step; None for zeros
    """
    _require_shapes(x, w, v, b, h0)
    xp = array_module(x)
    T, B, C = x.shape
    H = v.shape[0]
    rows = x.reshape(-1, C)                              # (T B, C)
    a = (rows @ w + b).reshape(T, B, 3 * H)              # the input's part; each step adds the state's
    q = xp.empty((T, B, H), dtype=x.dtype)
    h = xp.empty((T + 1, B, H), dtype=x.dtype)           # h[t] is the state before step t
    h[0] = 0 if h0 is None else h0

    def split(three):                                    # (..., 3H) -> the views (..., H) for r, u and n
        return three[..., :H], three[..., H:2 * H], three[..., 2 * H:]

    for t in range(T):
        p = h[t] @ v
        _open_gates(a[t, :, :2 * H], p[:, :2 * H])
        _new_state(*split(a[t]), p[:, 2 * H:], h[t], q[t], h[t + 1])

    def backward(g):
        da, dp = xp.empty_like(a), xp.empty_like(a)
        slopes = xp.empty((5, *q.shape), dtype=x.dtype)
        parallel_for(xp, T, lambda lo, hi: _slopes(q[lo:hi], h[lo:hi], *split(a[lo:hi]), *slopes[:, lo:hi]),
                     max(1, CACHED // (B * H)))
        dh = xp.zeros_like(h[0])                                             # the gradient from later steps
        for t in reversed(range(T)):
            _step_back(dh, g[t], *slopes[:, t], *split(da[t]), *split(dp[t]))
            dh += dp[t] @ v.T                                                # (1)
        da, dp = da.reshape(-1, 3 * H), dp.reshape(-1, 3 * H)                # (T B, 3H)
        dx = (da @ w.T).reshape(x.shape) if needs_grad[0] else None          # (6)
        dw = rows.T @ da                                                     # (6)
        db = column_sums(da)                                                 # (6)
        dv = h[:-1].reshape(-1, H).T @ dp                                    # (7)
        return dx, dw, dv, db, dh if h0 is not None else None

    return h[1:], backward


@fused
def _open_gates(xp, a, p):
    """a <- e = exp(-(a + p)), at most exp(80). The gate is 1 / (1 + e), and 1 minus the gate e / (1 + e)."""
    t = -a
    t -= p
    xp.exp(xp.minimum(t, 80), out=a)


@fused
def _new_state(xp, e_r, e_u, a_n, p, h, q, after):
    """q, the input a_n of the tanh and h_t (after), in place; p: the part of h_{t-1} V in the new content."""
    # n = tanh(x W + b + r q),  h_t = u h_{t-1} + (1 - u) n = (h_{t-1} + e_u n) / (1 + e_u)
    q[...] = p
    a_n += p / (1 + e_r)
    t = xp.tanh(a_n)
    t *= e_u
    t += h
    xp.divide(t, 1 + e_u, out=after)


@fused
def _slopes(xp, q, h, e_r, e_u, a_n, r, u, to_r, to_u, to_n):
    """r and u; and what (2) and (3) multiply dh_t by, and (4) da_n. No factor is a difference of numbers near 1."""
    xp.divide(1, 1 + e_r, out=r)
    xp.multiply(e_r, r, out=to_r)                                            # 1 - r
    to_r *= r
    to_r *= q                                                                # (4)
    xp.divide(1, 1 + e_u, out=u)
    rest = e_u * u                                                           # 1 - u
    xp.subtract(h, xp.tanh(a_n), out=to_u)
    to_u *= u
    to_u *= rest                                                             # (3)
    e = xp.abs(a_n)
    e *= -2
    xp.exp(e, out=e)                                                         # 1 - n^2 = 4 e / (1 + e)^2, as in ops.tanh
    xp.multiply(rest, e, out=to_n)
    to_n *= 4
    e += 1
    e *= e
    to_n /= e                                                                # (2)


@fused
def _step_back(xp, dh, g, r, u, to_r, to_u, to_n, da_r, da_u, da_n, dp_r, dp_u, dp_n):
    """The step's da and dp, in place, and in dh the part that u passes to the previous step."""
    dh += g                                                                  # (1)
    d = dh * to_n                                                            # (2)
    da_n[...] = d
    xp.multiply(d, r, out=dp_n)                                              # (5)
    d *= to_r                                                                # (4)
    da_r[...] = d
    dp_r[...] = d                                                            # (5)
    xp.multiply(dh, to_u, out=d)                                             # (3)
    da_u[...] = d
    dp_u[...] = d                                                            # (5)
    dh *= u


def _require_shapes(x, w, v, b, h0):
    if x.ndim != 3 or min(x.shape) < 1:
        raise ValueError(f"gru: expected x (T, B, C), T steps of B sequences, got {x.shape}")
    _, B, C = x.shape
    H = v.shape[0]
    for name, array, shape in (("w", w, (C, 3 * H)), ("v", v, (H, 3 * H)), ("b", b, (3 * H,)), ("h0", h0, (B, H))):
        if array is not None and array.shape != shape:
            raise ValueError(f"gru: expected {name} {shape} for x {x.shape} and {H} units, got {array.shape}; the "
                             "three gates stand side by side, and sequences are time-major: (T, B, C)")
