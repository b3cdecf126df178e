"""Each case of tests/accuracy.py is within its limit. `python tests/accuracy.py` compares with PyTorch."""

import accuracy
import numpy as np
import pytest

from minicl import Tensor, contrastive, ops


@pytest.mark.parametrize("case", accuracy.CASES, ids=lambda case: case.name)
def test_float32_is_within_its_limit_of_float64(case):
    results, exact = (accuracy.minicl_results(case, dtype) for dtype in ("float32", "float64"))
    assert accuracy.error(case, results, exact) <= case.most


def test_the_command_prints_one_row_per_case(capsys):
    assert accuracy.main(["var of rows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("case") and sum(line.startswith("var of rows") for line in lines) == 2


# ---------------------------------------------------------------- how the entries lie in memory must not matter

LAYOUTS = {
    "as usual": lambda x: x,
    "by columns": np.asfortranarray,
    "part of an array by columns": lambda x: np.asfortranarray(np.concatenate([x, x]))[:len(x)],
    "last axes exchanged": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "every second column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
}
LONG = [(op, shape, {"axis": axis}) for op in (ops.sum, ops.mean, ops.var, ops.logsumexp) for shape, axis in (
    ((4, 50_000), 1), ((50_000, 4), 0), ((2, 30_000, 3), 1), ((2, 3, 30_000), 2), ((2, 3, 30_000), (1, 2)),
    ((30_000, 2, 3), (0, 1)), ((30_000, 2, 3), (0, 2)), ((5, 100, 200), (0, 1)), ((40_000, 2), None), ((200_000, 2), None))]
LONG += [(op, (4, 50_000), {}) for op in (contrastive.softmax, contrastive.log_softmax)]
LONG += [(lambda x: ops.layer_norm(x, *np.array([[1], [0]], dtype=x.dtype).repeat(4000, axis=1)), (30, 4000), {})]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op, shape, options", LONG, ids=lambda x: getattr(x, "__name__", str(x)))
def test_sums_are_as_accurate_in_every_layout(op, shape, options, layout):
    x = np.random.default_rng(7).random(shape, dtype="float32")
    results = []
    for values in (x, x.astype("float64")):
        tensor = Tensor(LAYOUTS[layout](values), requires_grad=True)
        y = op(tensor, **options)
        y.backward(np.asarray(1 + np.random.default_rng(8).random(y.shape), dtype=y.dtype))
        results.append([y.data, tensor.grad])
    most = 10 if op in (ops.sum, ops.mean, ops.var) else 60
    for got, right in zip(*results):
        assert np.abs(got - right).max() <= most * accuracy.ROUNDING * np.abs(right).max()


def test_a_long_sum_of_equal_numbers_in_a_batched_transpose():
    x = Tensor(np.full((2, 10**6, 3), 0.1, dtype="float32")).transpose(0, 2, 1)
    np.testing.assert_allclose(x.sum(axis=-1).data, 1e5, rtol=1e-6)
