"""At least one case for every op of minicl: small float64 inputs away from kinks. test_ops.py runs all of them.

Case(op, inputs, options): inputs are host arrays (float64, or integers and bools for ids and masks). `at` names the
case where an op has several.

MINICL_CASE_SEED=7 in the environment gives every case other values and adds cases of other shapes. Grading uses it
(docs/exercises.md). The default, 0, gives the cases as written here.
"""

import os
from dataclasses import dataclass, field

import numpy as np

from minicl import contrastive, distributed, ops

SEED = int(os.environ.get("MINICL_CASE_SEED", 0))
_SEEDS = [SEED] if SEED else []


@dataclass
class Case:
    op: object
    inputs: tuple
    options: dict = field(default_factory=dict)
    at: str = ""

    def __str__(self):
        return self.op.__name__ + (f"-{self.at}" if self.at else "")


def normal(*shape):
    """Standard normal numbers that depend only on the shape and on MINICL_CASE_SEED."""
    return np.random.default_rng(list(shape) + [1] + _SEEDS).standard_normal(shape)


def apart(*shape):
    """Distinct numbers, at least 0.1 from each other and from 0: no ties, and no kink within a finite difference."""
    size = int(np.prod(shape))
    values = 0.2 * (np.arange(size) - size // 2) + 0.1
    return np.random.default_rng([size] + _SEEDS).permutation(values).reshape(shape)


def above_zero(*shape):
    return np.abs(normal(*shape)) + 0.5


TAU = np.array(0.3)

CASES = [
    Case(ops.add, (normal(2, 3), normal(2, 3))),
    Case(ops.add, (normal(4, 2, 3), normal(3)), at="bias over added rank"),
    Case(ops.sub, (normal(2, 1), normal(3)), at="both broadcast"),
    Case(ops.mul, (normal(2, 3), normal(1, 3)), at="broadcast"),
    Case(ops.div, (normal(2, 3), above_zero(2, 1)), at="broadcast"),
    Case(ops.neg, (normal(2, 3),)),
    Case(ops.pow, (above_zero(2, 3),), {"exponent": 2.5}),
    Case(ops.pow, (normal(2, 3),), {"exponent": 2}, at="square"),
    Case(ops.exp, (normal(2, 3),)),
    Case(ops.log, (above_zero(2, 3),)),
    Case(ops.sqrt, (above_zero(2, 3),)),
    Case(ops.abs, (apart(2, 3),)),
    Case(ops.tanh, (normal(2, 3),)),
    Case(ops.sigmoid, (normal(2, 3),)),
    Case(ops.relu, (apart(2, 3),)),
    Case(ops.add_relu, (apart(2, 3), apart(2, 3) / 3)),
    Case(ops.leaky_relu, (apart(2, 3),), {"slope": 0.2}),
    Case(ops.gelu, (normal(2, 3),)),
    Case(ops.maximum, (apart(2, 4), apart(1, 4) + 0.05), at="broadcast"),
    Case(ops.minimum, (apart(2, 4), apart(1, 4) + 0.05), at="broadcast"),
    Case(ops.where, (np.array([[True, False, True]]), normal(2, 3), normal(3)), at="broadcast"),
    Case(ops.clip, (apart(2, 5),), {"low": -0.6, "high": 0.4}),
    Case(ops.clip, (apart(2, 5),), {"low": 0.0}, at="one side"),
    Case(ops.dropout, (normal(4, 5),), {"p": 0.4, "rng": lambda: np.random.default_rng(3)}),
    Case(ops.sum, (normal(2, 3, 4),)),
    Case(ops.sum, (normal(2, 3, 4),), {"axis": (0, -1)}, at="two axes"),
    Case(ops.sum, (normal(2, 3, 4),), {"axis": 1, "keepdims": True}, at="keepdims"),
    Case(ops.mean, (normal(2, 3),)),
    Case(ops.mean, (normal(2, 3, 4),), {"axis": (0, 1)}, at="two axes"),
    Case(ops.max, (apart(3, 4),)),
    Case(ops.max, (apart(3, 4),), {"axis": -1}, at="last axis"),
    Case(ops.logsumexp, (normal(3, 4),), {"axis": 1}),
    Case(ops.logsumexp, (normal(3, 4),), {"axis": 0, "keepdims": True}, at="keepdims"),
    Case(ops.var, (normal(3, 4),)),
    Case(ops.var, (normal(3, 4),), {"axis": 0, "correction": 1}, at="unbiased"),
    Case(ops.reshape, (normal(2, 6),), {"shape": (3, -1)}),
    Case(ops.transpose, (normal(2, 3),)),
    Case(ops.transpose, (normal(2, 3, 4),), {"axes": (1, 2, 0)}, at="cycle"),
    Case(ops.to_pixel_major, (normal(2, 3, 4, 1),)),
    Case(ops.to_pixel_major, (normal(2, 3, 4, 3),), at="colour"),
    Case(ops.broadcast_to, (normal(3, 1),), {"shape": (2, 3, 4)}),
    Case(ops.getitem, (normal(4, 3),), {"key": (slice(1, None, 2), None, -1)}),
    Case(ops.getitem, (normal(4, 3),), {"key": np.array([0, 2, 2, 2])}, at="repeated ids"),
    Case(ops.getitem, (normal(4, 3),), {"key": (np.arange(4), np.array([0, 2, 1, 1]))}, at="one a row"),
    Case(ops.concat, (normal(2, 3), normal(1, 3), normal(4, 3))),
    Case(ops.concat, (normal(2, 3), normal(2, 1)), {"axis": -1}, at="last axis"),
    Case(ops.stack, (normal(2, 3), normal(2, 3) + 1), {"axis": 1}),
    Case(ops.pad, (normal(2, 3),), {"widths": ((1, 0), (0, 2))}),
    Case(ops.matmul, (normal(2, 3), normal(3, 4))),
    Case(ops.matmul, (normal(5, 2, 3), normal(3, 4)), at="batch against one"),
    Case(ops.linear, (normal(4, 3), normal(3, 2), normal(2))),
    Case(ops.linear, (normal(2, 4, 3), normal(3, 2), normal(2)), at="leading axes"),
    Case(ops.conv2d, (normal(4, 5, 2, 5), normal(3, 3, 5, 2)), {"padding": 1}),
    Case(ops.conv2d, (normal(4, 5, 2, 5), normal(3, 3, 5, 2)), at="unpadded"),
    Case(ops.conv2d, (normal(5, 6, 2, 5), normal(3, 2, 5, 2)), {"stride": 2, "padding": 1}, at="stride 2"),
    Case(ops.conv2d, (normal(7, 5, 2, 5), normal(2, 3, 5, 2)), {"stride": 3, "padding": 2}, at="stride 3"),
    Case(ops.conv2d, (normal(3, 3, 2, 5), normal(1, 1, 5, 4)), at="1x1"),
    Case(ops.conv2d, (normal(5, 6, 2, 1), normal(3, 3, 1, 3)), {"stride": 2, "padding": 1}, at="grey"),
    Case(ops.conv2d, (normal(4, 4, 2, 3), normal(3, 3, 3, 2)), at="colour"),
    Case(ops.max_pool2d, (apart(4, 5, 2, 2),)),
    Case(ops.max_pool2d, (apart(5, 5, 1, 2),), {"size": 3, "stride": 2}, at="overlapping"),
    Case(ops.avg_pool2d, (normal(4, 5, 2, 2),)),
    Case(ops.avg_pool2d, (normal(5, 5, 1, 2),), {"size": 3, "stride": 1}, at="overlapping"),
    Case(ops.batch_norm, (normal(6, 3), normal(3), normal(3) + 1)),
    Case(ops.batch_norm, (normal(3, 2, 2, 3), normal(3), apart(3)), {"relu": True}, at="with relu"),
    Case(ops.layer_norm, (normal(2, 3, 5), normal(5), normal(5) + 1)),
    Case(ops.gru, (normal(3, 2, 4), normal(4, 6), normal(2, 6), normal(6))),
    Case(ops.gru, (normal(1, 2, 4), normal(4, 9), normal(3, 9), normal(9), normal(2, 3)), at="given state"),
    Case(ops.attention, (normal(2, 3, 3), normal(2, 5, 3), normal(2, 5, 4))),
    Case(ops.attention, (normal(2, 2, 3, 4), normal(2, 2, 3, 4) + 0.1, normal(2, 2, 3, 4) - 0.2),
         {"mask": np.array([[[True, True, False]], [[False, False, False]]])}, at="padded"),
    Case(ops.embedding, (np.array([[0, 3, 3], [1, 0, 0]]), normal(4, 2)), at="repeated ids"),
    Case(contrastive.l2_normalize, (normal(4, 3),)),
    Case(contrastive.cosine_similarity, (normal(4, 3), normal(2, 3))),
    Case(contrastive.log_softmax, (normal(3, 4), TAU)),
    Case(contrastive.softmax, (normal(3, 4), TAU)),
    Case(contrastive.info_nce, (normal(4, 3), normal(4, 3) + 0.5, normal(6, 3), TAU)),
    Case(contrastive.info_nce, (normal(4, 3), normal(4, 3) + 0.5, normal(6, 3), np.array(0.02)), at="sharp"),
    Case(contrastive.nt_xent, (normal(4, 3), normal(4, 3) + 0.5, TAU)),
    Case(contrastive.clip_loss, (normal(4, 3), normal(4, 3) + 0.5, np.array(1.2))),
    Case(contrastive.clip_loss, (normal(4, 3), normal(4, 3) + 0.5, np.array(4.6)), at="sharp"),
    Case(contrastive.clip_loss, (normal(5, 3), normal(5, 3) + 0.5, np.array(1.2)),
         {"caption_ids": np.array([0, 1, 0, 0, 1])}, at="repeated captions"),
    Case(contrastive.nt_xent, (normal(4, 3), normal(4, 3) + 0.5, np.array(0.02)), at="sharp"),
    Case(contrastive.alignment_loss, (normal(5, 4), normal(5, 4) + 0.5), {"alpha": 3}),
    Case(contrastive.alignment_loss, (normal(4, 3), normal(4, 3) + 0.5), {"alpha": 1}, at="distance"),
    Case(contrastive.uniformity_loss, (normal(5, 3),), {"t": 1.5}),
    Case(contrastive.uniformity_loss, (normal(5, 3),), {"t": 60}, at="sharp"),
    Case(contrastive.sup_con, (normal(6, 3), TAU), {"labels": lambda: np.array([0, 1, 0, 2, 1, 0])}),
    Case(contrastive.dcl, (normal(4, 3), normal(4, 3) + 0.5, TAU)),
    Case(contrastive.siglip, (normal(4, 3), normal(4, 3) + 0.5, np.array(1.5), np.array(-2.0))),
    Case(contrastive.triplet, (normal(5, 3), normal(5, 3) + 0.5, normal(5, 3)[::-1].copy()), {"margin": 0.5}),
    Case(distributed.all_gather, (normal(4, 3),)),
    Case(distributed.mean_of, (normal(2),)),
    Case(contrastive.vicreg, (normal(6, 3), 0.3 * normal(6, 3) + 0.5 * apart(6, 3))),
    Case(contrastive.barlow_twins, (normal(6, 3), 2 * normal(6, 3) + apart(6, 3)), {"off_diagonal": 0.1}),
]


def drawn(seed):
    """Cases for the ops of docs/exercises.md; the seed draws their sizes and temperature."""
    rng = np.random.default_rng(seed)
    N, M, C, K, B = map(int, rng.permutation(range(2, 7)))           # all differ, so that no transposed array fits
    views = (normal(N, C), normal(N, C) + 0.5)
    tau = np.array(rng.uniform(0.2, 1))
    at = f"seed {seed}"
    return [
        Case(ops.add, (normal(M, N, C), normal(N, 1)), at=f"broadcast {at}"),
        Case(ops.mul, (normal(N, 1), normal(M, 1, C)), at=f"broadcast {at}"),
        Case(ops.relu, (apart(N, C),), at=at),
        Case(ops.logsumexp, (normal(N, C, K),), {"axis": (0, 2)}, at=at),
        Case(ops.matmul, (normal(N, C), normal(C, K)), at=at),
        Case(ops.linear, (normal(M, N, C), normal(C, K), normal(K)), at=at),
        Case(ops.conv2d, (normal(N + 2, M + 2, B, C + 4), normal(3, 2, C + 4, K)), {"stride": 2, "padding": 1}, at=at),
        Case(ops.max_pool2d, (apart(N + 1, M + 1, B, C),), at=at),
        Case(ops.batch_norm, (normal(N, B, C), normal(C), normal(C) + 1), at=at),
        Case(ops.layer_norm, (normal(N, B, C), normal(C), normal(C) + 1), at=at),
        Case(ops.attention, (normal(B, N, C), normal(B, M, C) + 0.1, normal(B, M, K)), at=at),
        Case(contrastive.l2_normalize, (normal(N, C),), at=at),
        Case(contrastive.cosine_similarity, (normal(N, C), normal(M, C)), at=at),
        Case(contrastive.log_softmax, (normal(N, K), tau), at=at),
        Case(contrastive.softmax, (normal(N, K), tau), at=at),
        Case(contrastive.info_nce, (*views, normal(M, C), tau), at=at),
        Case(contrastive.nt_xent, (*views, tau), at=at),
        Case(contrastive.clip_loss, (*views, np.array(rng.uniform(0, 3))), at=at),
        Case(contrastive.siglip, (*views, np.array(rng.uniform(0, 2)), np.array(rng.uniform(-3, 0))), at=at),
        Case(contrastive.alignment_loss, views, {"alpha": 3}, at=at),
        Case(contrastive.uniformity_loss, (normal(N, C),), {"t": 1.5}, at=at),
    ]


if SEED:
    CASES += drawn(SEED)


def all_ops():
    """Every op that minicl defines, as a list."""
    return [thing for module in (ops, contrastive) for thing in vars(module).values() if hasattr(thing, "forward") and hasattr(thing, "checks")]


_without_case = [op.__name__ for op in all_ops() if not any(case.op is op for case in CASES)]
if _without_case:
    raise LookupError(f"tests/cases.py: no case for {', '.join(_without_case)}; every op needs one")
