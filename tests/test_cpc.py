"""CPC: the known structure of the data, non-overlapping windows, the choice among sequences, and the example."""

import functools
import math
import os
import signal

import numpy as np
import pytest
import sequences
from known_information import gaussian_information
from sequences import Rotation, SequenceData, generate_rotations, image_rows, load_sequences, time_first
from example_runs import read_run, run_example

from minicl import Tensor, gradcheck
from minicl.backend import to_device, to_host
from minicl.checkpoint import load_checkpoint
from minicl.contrastive import info_nce_from_scores
from minicl.data import DataError, digits
from minicl.methods import CPC, WindowEncoder
from minicl.nn import GRU
from minicl.run import Run

# ---------------------------------------------------------------- the data

def test_the_hidden_states_are_stationary_and_decorrelate_with_the_gap(rng):
    """States are N(0, I) at every step. A state rotated by a gap correlates with the later state by decay^gap."""
    rotation = Rotation(planes=2, decay=0.9, length=12)
    _, s = rotation.draw(20_000, rng)
    for t in (0, 11):
        np.testing.assert_allclose(np.cov(s[:, t].T), np.eye(4), atol=0.05)
    for gap in (1, 5):
        np.testing.assert_allclose((rotation.turned(s[:, 3], gap) * s[:, 3 + gap]).mean(axis=0), 0.9**gap, atol=0.03)


def test_turning_is_a_rotation_of_each_plane_by_its_angle():
    rotation = Rotation(planes=2)
    s = np.array([[1.0, 0.0, 0.0, 2.0]])                     # plane 0 is at (1, 0), plane 1 at (0, 2)
    (a, b) = 3 * rotation.angles
    turned = rotation.turned(s, 3)
    np.testing.assert_allclose(turned, [[math.cos(a), -2 * math.sin(b), math.sin(a), 2 * math.cos(b)]])
    np.testing.assert_allclose(rotation.turned(turned, -3), s, atol=1e-12)


def test_an_observation_shows_one_coordinate_of_each_plane(rng):
    x, s = Rotation(planes=2, noise=0.0).draw(50, rng)
    fit, *_ = np.linalg.lstsq(s[:, 0], x[:, 0], rcond=None)
    np.testing.assert_allclose(s[:, 0] @ fit, x[:, 0], atol=1e-5)
    np.testing.assert_allclose(fit[2:], 0, atol=1e-5)


def test_a_seed_repeats_the_sequences():
    one, again, other = (generate_rotations(Rotation(length=5), 4, 3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.train, again.train)
    assert (one.train != other.train).any() and one.train.dtype == np.float32
    assert one.train.shape == (4, 5, 16) and one.test.shape == (3, 5, 16) and one.test_states.shape == (3, 5, 8)


def test_rows_of_images_come_from_top_to_bottom_with_their_classes():
    images = digits.generate_digits(3, 2)
    rows = image_rows(images)
    np.testing.assert_array_equal(rows.train[1, 5], images.train_images[1, 5, :, 0])
    np.testing.assert_array_equal(rows.test_labels, images.test_labels)
    assert rows.name == "digits rows"


def test_time_first_swaps_the_axes_and_scales_bytes_to_0_to_1(xp):
    floats = np.arange(24, dtype="float32").reshape(2, 3, 4)
    x = time_first(floats, xp)
    assert isinstance(x, xp.ndarray) and x.shape == (3, 2, 4) and x.dtype == "float32"
    np.testing.assert_array_equal(to_host(x)[2, 1], floats[1, 2])
    np.testing.assert_allclose(to_host(time_first(np.full((2, 3, 4), 255, "uint8"), xp)), 1, rtol=1e-6)


@pytest.mark.parametrize("call, error, message", [
    (lambda: Rotation(decay=1.0), ValueError, r"Rotation: decay must be a number in \(0, 1\), got 1.0"),
    (lambda: load_sequences("waves"), DataError, "load_sequences: name must be one of rotation, mnist-rows, "),
    (lambda: load_sequences("rotation", "here"), DataError, "load_sequences: 'rotation' reads no files, got data_dir"),
    (lambda: SequenceData("x", np.zeros((2, 3, 4)), np.zeros((2, 3, 4))), ValueError, "SequenceData: train must be"),
], ids=["no forgetting", "unknown", "files", "float64"])
def test_invalid_data_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------- the method

@pytest.fixture
def model(rng):
    encoder = WindowEncoder(3, 4, hidden=8, features=5, rng=rng)
    return CPC(encoder, GRU(5, 6, rng=rng), 2, rng=rng)


def test_a_window_sees_its_own_samples_and_no_other(model, rng):
    x = rng.standard_normal((14, 2, 3), dtype="float32")     # 3 windows of 4, and 2 samples left over
    z = model.encoder(x).data
    assert z.shape == (3, 2, 5)
    for t in range(14):
        changed = x.copy()
        changed[t, 1] += 1
        differs = (model.encoder(changed).data != z).any(axis=2)
        expected = np.zeros((3, 2), bool)
        expected[t // 4:t // 4 + 1, 1] = True
        np.testing.assert_array_equal(differs, expected)


def test_the_context_depends_only_on_the_past(model, rng):
    x = rng.standard_normal((12, 2, 3), dtype="float32")
    changed = x.copy()
    changed[4:] += 1
    before, after = model(x)[1].data, model(changed)[1].data
    np.testing.assert_array_equal(before[:1], after[:1])
    assert (before[1:] != after[1:]).any(axis=2).all()


def test_without_a_context_network_the_context_is_the_window(rng):
    model = CPC(WindowEncoder(3, 4, features=5, rng=rng), None, 2, rng=rng)
    z, c = model(rng.standard_normal((8, 2, 3), dtype="float32"))
    assert c is z and [p.weight.shape for p in model.predictors] == [(5, 5)] * 2


def test_a_score_is_the_product_of_a_prediction_and_a_future(model, xp, rng):
    z, c = model.to(xp)(to_device(rng.standard_normal((16, 3, 3), dtype="float32"), xp))
    z_host, c_host = to_host(z.data), to_host(c.data)
    for k in (1, 2):
        scores, ids = model.scores(z, c, k)
        assert scores.shape == ((4 - k) * 3, 3)
        w, scores, ids = to_host(model.predictors[k - 1].weight.data), to_host(scores.data), to_host(ids)
        for t in range(4 - k):
            for i in range(3):
                assert ids[t * 3 + i] == i                   # the positive is the same sequence, k windows later
                for j in range(3):
                    expected = z_host[t + k, j] @ (c_host[t, i] @ w)
                    assert scores[t * 3 + i, j] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_gradient_passes_through_predictor_context_and_encoder(model, rng):
    model.astype("float64")
    names, parameters = zip(*model.named_parameters())

    def loss(x, *weights):
        for parameter, weight in zip(parameters, weights):
            parameter.data = weight.data
            parameter.node = weight.node
            parameter.requires_grad = weight.requires_grad
        z, c = model(x)
        return info_nce_from_scores(*model.scores(z, c, 1)) + info_nce_from_scores(*model.scores(z, c, 2))

    x = Tensor(rng.standard_normal((12, 3, 3)))
    loss(x, *parameters).backward()
    assert all(p.grad is not None and np.abs(p.grad).max() > 0 for p in parameters)
    assert gradcheck(lambda x: loss(x, *parameters), [x.data])


@pytest.mark.parametrize("call, message", [
    (lambda model, z, c: model.scores(z, c, 0), "CPC.scores: k must be an integer >= 1, got 0"),
    (lambda model, z, c: model.scores(z, c, 3), "CPC.scores: expected k from 1 to 2, got 3"),
    (lambda model, z, c: model.scores(z[:2], c[:2], 2), r"with T > 2 and B >= 2, got \(2, 3, 5\) and \(2, 3, 6\)"),
    (lambda model, z, c: model.scores(z[:, :1], c[:, :1], 1), "B >= 2"),
    (lambda model, z, c: model.scores(z, c[1:], 1), r"CPC.scores: expected z \(T, B, d\) and c \(T, B, H\)"),
    (lambda model, z, c: model.encoder(np.zeros((3, 2, 3), "float32")), r"WindowEncoder: .* of T >= 4 steps"),
    (lambda model, z, c: model.encoder(np.zeros((8, 2, 4), "float32")), r"WindowEncoder: expected .* \(T, B, 3\)"),
], ids=["k 0", "k too far", "too short", "one sequence", "other times", "no window", "other channels"])
def test_bad_input_is_named(model, rng, call, message):
    z, c = model(rng.standard_normal((16, 3, 3), dtype="float32"))
    with pytest.raises(ValueError, match=message):
        call(model, z, c)


# ---------------------------------------------------------------- the example

SMALL = ("--batch", 16, "--ahead", 3, "--hidden", 32, "--log-every", 1)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """example(*options, out=name): run the script on few sequences; returns (exit code, folder)."""
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 640, 160))
    monkeypatch.setattr(sequences, "generate_rotations", functools.partial(generate_rotations, n_train=400, n_test=160))

    def run(*options, out="out"):
        return run_example("cpc_sequences", *SMALL, *options, "--out", tmp_path / out), tmp_path / out
    return run


def test_the_future_is_picked_better_than_chance_and_better_when_nearer(example, xp):
    code, folder = example("--epochs", 6, "--backend", "numpy" if xp is np else "cupy")
    result, log = read_run(folder)
    accuracy = [result[f"accuracy_{k}"] for k in (1, 2, 3)]
    oracle = [result[f"oracle_{k}"] for k in (1, 2, 3)]
    assert code == 0 and result["chance"] == 1 / 16 and len(log) == 6 * 400 // 16
    assert accuracy[0] > accuracy[1] > accuracy[2] > 2 / 16
    assert all(seen > learned for seen, learned in zip(oracle, accuracy))
    for k in (1, 2, 3):
        information = gaussian_information(0.98**(4 * k - 3), 8)
        assert result[f"information_{k}"] == pytest.approx(information)
        assert 0 < result[f"bound_{k}"] < min(information, math.log(16))


def test_a_memory_picks_the_future_better_than_the_last_window_does(example, monkeypatch):
    monkeypatch.setattr(sequences, "generate_rotations", functools.partial(generate_rotations, n_train=1600, n_test=320))
    accuracy = {}
    for context in ("gru", "none"):
        _, folder = example("--context", context, "--ahead", 1, "--epochs", 5, out=context)
        accuracy[context] = read_run(folder)[0]["accuracy_1"]
    assert accuracy["gru"] > accuracy["none"] + 0.02 > 0.5


def test_the_context_of_digit_rows_predicts_their_class(example):
    code, folder = example("--data", "digit-rows", "--epochs", 4)
    result, _ = read_run(folder)
    assert code == 0 and result["data"] == "digits rows"
    assert result["accuracy_1"] > 4 / 16 and result["probe_c"] > 0.15
    assert "oracle_1" not in result


def test_a_picture_is_drawn_where_matplotlib_is_installed(example):
    pytest.importorskip("matplotlib")
    _, folder = example("--epochs", 1)
    assert (folder / "prediction.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option, value, message", [
    ("--ahead", 16, "--ahead 16: a sequence has 16 windows of 4, so at most 15 can be ahead"),
    ("--batch", 161, "--batch 161: there are 160 test sequences to choose among"),
    ("--data-dir", "here", "load_sequences: 'rotation' reads no files"),
])
def test_invalid_options_give_one_clear_line(example, capsys, option, value, message):
    code, _ = example(option, value)
    assert code == 2 and message in capsys.readouterr().err


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(example, monkeypatch):
    _, whole = example("--epochs", 2, out="whole")
    log = Run.log

    def log_and_press_ctrl_c(run, step, **metrics):
        log(run, step, **metrics)
        if step == 30:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_press_ctrl_c)
        assert example("--epochs", 2, out="stopped")[0] == 130
    code, stopped = example("--epochs", 2, "--resume", out="stopped")
    signal.signal(signal.SIGINT, before)
    assert code == 0
    arrays, others = (load_checkpoint(folder / "checkpoint.npz")[0] for folder in (whole, stopped))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert (whole / "log.jsonl").read_bytes() == (stopped / "log.jsonl").read_bytes()
