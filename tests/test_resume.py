"""An interrupted run resumes with the same numbers, or the resume is refused."""

import dataclasses
import functools
import json
import os
import sys
import types
import threading

import numpy as np
import pytest
from small_runs import SAVE_EVERY, TOTAL, Crash, Scaled, arguments, assert_same_end, crash, press_ctrl_c, start, train

from minicl import Tensor, ops
from minicl.checkpoint import FORMAT, CheckpointError, load_checkpoint, save_checkpoint, settings
from minicl.data import generate_digits
from minicl.distributed import World
from minicl.methods import MoCo
from minicl.nn import MLP, BatchNorm, Dropout, Linear, Module, Sequential
from minicl.nn.spec import class_reads
from minicl.optim import SGD, Adam, AdamW
from minicl.origin import fingerprint
from minicl.run import Run, RunError
from minicl.run_parts import Gradients

# ---------------------------------------------------------------- resuming

class Mine(SGD):
    def __init__(self, model, lr, *, beta):
        super().__init__(model, lr)
        self.beta = beta


def one_step_at_a_time(out, *more, beta=0.5):
    run, rng = start(out, *more), np.random.default_rng(0)
    model = Scaled(rng=rng)
    optimizer = Mine(model, 0.1, beta=beta)
    for _ in run.steps(4, rng, save_every=1, model=model, optimizer=optimizer):
        optimizer.zero_grad(), model(np.ones((1, 2), "float32")).sum().backward(), optimizer.step()
        run.stop()
    run.finish({})


def test_numbers_that_a_models_classes_read_are_compared(out, capsys, monkeypatch):
    one_step_at_a_time(out)
    one_step_at_a_time(out, "--resume")
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setattr(Scaled, "rate", 2.0)
    one_step_at_a_time(out, "--resume")
    assert "warning: small_runs.Scaled.rate (was 1.0, now 2.0) changed since the checkpoint was saved" in capsys.readouterr().out


def test_the_settings_of_an_optimizer_of_ones_own_are_compared(out):
    one_step_at_a_time(out)
    with pytest.raises(CheckpointError, match="optimizer.beta was 0.5, now 0.25"):
        one_step_at_a_time(out, "--resume", beta=0.25)


def test_resume_needs_an_out():
    with pytest.raises(RunError, match="--resume continues from the checkpoint in a folder: name it with --out"):
        start(None, "--resume")


def test_resume_needs_a_checkpoint(out):
    with pytest.raises(CheckpointError, match="no checkpoint at .*; start a run without --resume first"):
        start(out, "--resume")
    assert not out.exists()


def test_resume_names_the_options_that_changed(out):
    train(start(out))
    with pytest.raises(RunError) as error:
        start(out, "--resume", "--lr", "0.5", "--seed", "3")
    text = str(error.value)
    assert "--lr was 0.1, now 0.5" in text and "--seed was 0, now 3" in text and "--tau" not in text
    assert json.loads((out / "config.json").read_text())["seed"] == 0


@pytest.mark.parametrize("option", [("--log-every", "3"), ("--backend", "cupy"), ("--data-dir", "elsewhere"),
                                    ("--threads", "1")])
def test_options_that_do_not_change_the_run_may_change_on_resume(out, option):
    train(start(out))
    start(out, "--resume", *option)


@pytest.mark.parametrize("saved", [4, None, "4", 4.0])
def test_without_a_batch_option_a_resumed_run_uses_that_of_the_checkpoint(out, saved):
    train(start(out))
    _, meta = load_checkpoint(out / "checkpoint.npz")
    save_checkpoint(out / "checkpoint.npz", {}, {**meta, "config": {**meta["config"], "batch": saved}})
    args = arguments(out, "--resume")
    args.batch = None                                        # as in scripts that choose it by the number of pictures
    if type(saved) in (str, float):
        with pytest.raises(RunError, match="--batch was .*4.*, now None"):
            Run(args, "test")
    else:
        run = Run(args, "test")
        assert run.config["batch"] == args.batch == saved
        run.close()


def test_resume_refuses_another_model(out):
    train(start(out))
    run = start(out, "--resume")
    rng = np.random.default_rng(0)
    with pytest.raises(CheckpointError, match="does not fit this run: it was saved from another model or optimizer"):
        next(run.steps(TOTAL, save_every=SAVE_EVERY, rng=rng, model=Linear(3, 4, rng=rng)))


def net(changes=None, relus=1, p=0.3, momentum=0.1, own=3):
    """A model whose weights have the same names and shapes for all arguments."""
    rng = np.random.default_rng(0)
    model = Sequential(Linear(2, 2, rng=rng), BatchNorm(2, momentum=momentum), Dropout(p, rng=rng), Own(own), *[ops.relu] * relus)
    for name, value in (changes or {}).items():
        setattr(model.steps[int(name[0])], name[2:], value)
    return model


class Own(Module):
    """A user-defined module, which has no spec for some settings."""

    def __init__(self, setting):
        self.setting = setting

    def forward(self, x):
        return x


MODELS = [  # (a model, another of equal arrays, pattern of the error, or None if both are the same)
    ({}, {}, None), ({"own": np.ones(3)}, {"own": np.ones(3)}, None), ({"own": len}, {"own": len}, None), ({"own": np}, {"own": np}, None),
    ({}, {"relus": 2}, "model.steps was .*, now"), ({}, {"p": 0.9}, "model.steps.2.p was 0.3, now 0.9"),
    ({}, {"changes": {"1.eps": 0.5}}, "model.steps.1.eps was 1e-05, now 0.5"), ({}, {"changes": {"1.relu": True}}, "steps.1.relu was False, "),
    ({"changes": {"1.eps": 0.5}}, {"changes": {"1.eps": 0.25}}, "model.steps.1.eps was 0.5, now 0.25"), ({}, {"own": 4}, "steps.3.setting"),
    ({}, {"own": "3"}, "steps.3.setting"), ({"own": len}, {"own": max}, "steps.3.setting was '<built-in function len>', now "),
    ({"own": np.ones(3)}, {"own": np.zeros(3)}, "steps.3.setting"), ({"own": {1, 2}}, {"own": {1, 3}}, "steps.3.setting")]


def scaled(scale, shift=0.0):
    return lambda x, shift=shift: x * scale + shift


FUNCTIONS = [  # functions of one name: the same, and others by a constant, a name, a default, and what a closure or a partial holds
    (lambda x: x * 2.0, lambda x: x * 2.0, True), (lambda x: x * 2.0, lambda x: x * 3.0, False), (lambda x: x.mean(), lambda x: x.sum(), False),
    (scaled(2.0), scaled(2.0), True), (scaled(2.0), scaled(3.0), False), (scaled(2.0), scaled(2.0, 1.0), False), (scaled("a"), scaled(None), False),
    (lambda x: x * TOTAL, lambda x: x * TOTAL, True), (lambda x: x * TOTAL, lambda x: x * SAVE_EVERY, False),
    (functools.partial(scaled, 2.0), functools.partial(scaled, 2.0), True), (functools.partial(scaled, 2.0), functools.partial(scaled, 3.0), False),
    (functools.partial(scaled(2.0)), functools.partial(scaled(3.0)), False)]
OPTIMIZERS = [
    (lambda m: AdamW(m, 0.1), lambda m: AdamW(m, 0.1), None), (lambda m: AdamW(m, 0.1), lambda m: AdamW(m, 0.2), "optimizer.lr was 0.1, now 0.2"),
    (lambda m: AdamW(m, 0.1), lambda m: AdamW(m, 0.1, betas=(0.9, 0.99)), "optimizer.betas was .0.9, 0.999., now .0.9, 0.99."),
    (lambda m: Adam(m, 0.1), lambda m: Adam(m, 0.1, weight_decay=0.1), "optimizer.weight_decay was 0.0, now 0.1"),
    (lambda m: SGD(m, 0.1, momentum=0.9), lambda m: SGD(m, 0.1, momentum=0.9, nesterov=True), "optimizer.nesterov was False, now True")]


def train_net(run, model, make=lambda model: AdamW(model, 0.1)):
    optimizer = make(model)
    for step in run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY, model=model, optimizer=optimizer):
        optimizer.zero_grad()
        (model(np.ones((3, 2), "float32")) * 1.0).sum().backward()
        optimizer.step()
        if step == 6:
            run.close()
            break


@pytest.mark.parametrize("before, now, message", MODELS)
def test_resume_refuses_another_model_of_equal_arrays(out, before, now, message):
    train_net(start(out), net(**before))
    model = net(**now)
    state = model.state_dict()
    if message is None:
        return train_net(start(out, "--resume"), model)
    with pytest.raises(CheckpointError, match=f"it is of another model or optimizer: .*{message}"):
        train_net(start(out, "--resume"), model)
    assert all((array == state[name]).all() for name, array in model.state_dict().items())


@pytest.mark.parametrize("before, now, equal", FUNCTIONS)
def test_functions_in_a_model_are_compared_by_what_they_compute_with(before, now, equal):
    """Also in a list, a dict, or as a step of a Sequential."""
    for inside in (lambda f: f, lambda f: [f], lambda f: {"f": f}):
        here, there = (settings({"model": Sequential(Own(inside(f)))}) for f in (before, now))
        assert (here == there) == equal
    assert (settings({"model": Sequential(before)}) == settings({"model": Sequential(now)})) == equal


def test_a_global_that_a_function_reads_is_compared(monkeypatch):
    model = Sequential(lambda x: x * TOTAL)
    before = settings({"model": model})
    monkeypatch.setitem(globals(), "TOTAL", TOTAL + 1)
    assert settings({"model": model}) != before


@dataclasses.dataclass
class Config:
    scale: float
    sizes: tuple = (1, 2)


CONFIG: object = None


class ReadsConfig(Module):
    def forward(self, x):
        return x * (CONFIG["scale"] if isinstance(CONFIG, dict) else CONFIG.scale)


@pytest.mark.parametrize("make", [Config, lambda scale: {"scale": scale}, lambda scale: {"scale": scale, "in": {"it": np.ones(2)}},
                                  lambda scale: types.SimpleNamespace(scale=scale)])
def test_a_configuration_that_a_model_reads_is_compared(monkeypatch, make):
    found = []
    for scale in (1.0, 1.0, 2.0):
        monkeypatch.setitem(globals(), "CONFIG", make(scale))
        found.append((settings({"model": Sequential(lambda x: x * CONFIG)}), class_reads(ReadsConfig())))
    (function, reads), again, (other_function, other_reads) = found
    assert again == (function, reads) and function != other_function and reads != other_reads


def test_another_meta_has_another_format(out):
    """Where this fails, the meta of a run has changed: increase FORMAT, so that an older checkpoint is named as one."""
    train(start(out))
    meta = load_checkpoint(out / "checkpoint.npz")[1]
    assert (FORMAT, sorted(meta)) == (5, ["code", "config", "data", "late", "log", "models", "modes", "name", "rng", "seconds", "settings", "step", "stopped", "sums", "total", "unsaved"])


@pytest.mark.parametrize("before, now, message", OPTIMIZERS)
def test_resume_refuses_other_settings_of_an_optimizer(out, before, now, message):
    train_net(start(out), net(), before)
    if message is None:
        return train_net(start(out, "--resume"), net(), now)
    with pytest.raises(CheckpointError, match=f"it is of another model or optimizer: .*{message}"):
        train_net(start(out, "--resume"), net(), now)


def test_resume_refuses_a_checkpoint_without_a_run(out):
    save_checkpoint(out / "checkpoint.npz", {}, {"step": 1})
    with pytest.raises(CheckpointError, match="checkpoint.npz is not the checkpoint of a run"):
        start(out, "--resume")


@pytest.mark.parametrize("step", [5, 6, 8, 9, 11])
def test_a_crashed_run_resumed_equals_an_uninterrupted_run(tmp_path, xp, step):
    train(start(tmp_path / "whole"), xp)
    with pytest.raises(Crash):
        train(start(tmp_path / "crashed"), xp, at={step: crash})
    run = start(tmp_path / "crashed", "--resume")
    train(run, xp)
    assert_same_end(tmp_path / "whole", tmp_path / "crashed")


@pytest.mark.parametrize("every, save_every", [(2, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize("step", range(1, 9))
def test_no_checkpoint_is_taken_while_keys_wait(tmp_path, every, save_every, step):
    """A loop that steps after several backward passes resumes where no gradient is lost."""
    def learn(run, crash_after=None):
        rng = np.random.default_rng(3)
        model = MoCo(MLP((2, 2, 1), (4,), rng=rng), Linear(4, 3, rng=rng), dim=3, queue=20, m=0.9, splits=1)
        optimizer = SGD(model, 0.1, momentum=0.9)
        for step in run.steps(TOTAL, rng, save_every=save_every, model=model, optimizer=optimizer):
            images = rng.standard_normal((4, 2, 2, 1), dtype="float32")
            if step % every == 0:
                optimizer.zero_grad()
            model.loss(model(images)[1], model.encode_keys(images, rng), 0.2).backward()
            if step % every == every - 1:
                optimizer.step()
                model.update()
            if step == crash_after:
                raise Crash
        return model.state_dict()

    whole = learn(start(tmp_path / "whole"))
    with pytest.raises(Crash):
        learn(start(tmp_path / "part"), step)
    has_checkpoint = (tmp_path / "part/checkpoint.npz").exists()
    if has_checkpoint:
        assert load_checkpoint(tmp_path / "part/checkpoint.npz")[1]["step"] % every == 0
    resumed = learn(start(tmp_path / "part", *["--resume"] * has_checkpoint))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_a_run_whose_keys_wait_for_ever_is_refused(out):
    rng = np.random.default_rng(0)
    model = MoCo(MLP((2, 2, 1), (4,), rng=rng), Linear(4, 3, rng=rng), dim=3, queue=20, m=0.9, splits=1)
    images = np.ones((4, 2, 2, 1), "float32")
    with pytest.raises(CheckpointError, match="model has .*keys that wait for update.*put off for too many steps"):
        for _ in start(out).steps(200, rng, save_every=5, model=model):
            model.loss(model(images)[1], model.encode_keys(images, rng), 0.2)


LOOPS = {
    "adds up three": lambda step, first, second, loss: (loss().backward(), step % 3 == 2 and [(o.step(), o.zero_grad()) for o in (first, second)]),
    "by turns": lambda step, first, second, loss: (first.zero_grad(), second.zero_grad(), loss().backward(), (first, second)[step % 2].step()),
    "one later": lambda step, first, second, loss: (first.zero_grad(), second.zero_grad(), loss().backward(), first.step(), step > 8 and second.step()),
    "zeroed by hand": lambda step, first, second, loss: (step % 3 == 0 and [o.grads.fill(0) for o in (first, second)], loss().backward(),
                                                         step % 3 == 2 and (first.step(), second.step())),
    "never zeroed": lambda step, first, second, loss: (loss().backward(), first.step(), second.step()),
    "one by hand": lambda step, first, second, loss: (second.zero_grad(), step % 3 == 0 and [p.grad.fill(0) for p in first.parameters], loss().backward(),
                                                      second.step(), [p.data.__isub__(0.1 * p.grad) for p in first.parameters]),
    "reads the last": lambda step, first, second, loss: (first.grads.any() and second.grads.__imul__(1 / (1 + np.abs(first.grads).sum())), first.zero_grad(),
                                                         loss().backward(), first.step(), second.step()),
    "one never zeroed": lambda step, first, second, loss: (first.zero_grad(), loss().backward(), first.step(), step > 8 and second.step())}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("step", [1, 4, 9])
@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_that_wait_are_in_the_checkpoint(tmp_path, loop, step, held):
    class Both:
        """Holds both optimizers, and saves them."""

        def __init__(self, *optimizers):
            self.optimizers = optimizers

        def state_dict(self):
            return {f"{k}/{name}": x for k, each in enumerate(self.optimizers) for name, x in each.state_dict().items()}

        def load_state_dict(self, state):
            for k, each in enumerate(self.optimizers):
                each.load_state_dict({name.partition("/")[2]: x for name, x in state.items() if name.startswith(f"{k}/")})

    def learn(run, crash_after=None):
        rng = np.random.default_rng(3)
        model = Sequential(Linear(3, 4, rng=rng), ops.relu, Linear(4, 2, rng=rng))
        optimizers = [Adam([(f"{k}.{name}", p) for name, p in model[k].named_parameters()], 0.1) for k in (0, 2)]
        parts = {"both": Both(*optimizers)} if held else dict(zip(("first", "second"), optimizers))
        for step in run.steps(TOTAL, rng, save_every=1, model=model, **parts):
            x = rng.standard_normal((4, 3), dtype="float32")
            LOOPS[loop](step, *optimizers, lambda: (model(x)**2).mean())
            if step == crash_after:
                raise Crash
        return model.state_dict()

    whole = learn(start(tmp_path / "whole"))
    with pytest.raises(Crash):
        learn(start(tmp_path / "part"), step)
    assert load_checkpoint(tmp_path / "part/checkpoint.npz")[1]["step"] == step
    resumed = learn(start(tmp_path / "part", "--resume"))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_gradients_without_an_optimizer_are_in_the_checkpoint(tmp_path):
    """As of a loop that adds up three and moves the weights by hand."""
    def learn(run, crash_after=None):
        rng = np.random.default_rng(3)
        model = Linear(3, 2, rng=rng)
        for step in run.steps(TOTAL, rng, save_every=1, model=model):
            (model(rng.standard_normal((4, 3), dtype="float32"))**2).mean().backward()
            for p in model.parameters() if step % 3 == 2 else ():
                p.data -= 0.1 * p.grad
                p.grad = None
            if step == crash_after:
                raise Crash
        return model.state_dict()

    whole = learn(start(tmp_path / "whole"))
    for step in (1, 3, 4):
        out = tmp_path / str(step)
        with pytest.raises(Crash):
            learn(start(out), step)
        resumed = learn(start(out, "--resume"))
        assert all((whole[name] == resumed[name]).all() for name in whole)


@pytest.mark.parametrize("rank, used, expected", [(0, False, 1.0), (1, False, 0.0), (0, True, 1.0), (1, True, 1.0)])
def test_of_several_processes_the_first_gets_the_gradients_that_wait(rank, used, expected):
    """step() adds them up. Those that a step has added up are the same on all."""
    world = World()
    world.rank, world.size = rank, 2
    optimizer = SGD(Linear(3, 2, rng=np.random.default_rng(0)).across(world), 0.1)
    state = {"optimizer.grads": np.ones(8, "float32"), "optimizer.reached": np.array([used, True, True])}
    Gradients({"optimizer": optimizer}).load_state_dict(state)
    assert (optimizer.grads == expected).all() and optimizer._used == used


@pytest.mark.parametrize("change", [lambda g: g[1:], lambda g: g.astype("float64")])
def test_gradients_that_fit_no_parameters_are_refused(change):
    model = Linear(3, 2, rng=np.random.default_rng(0))
    optimizer = SGD(model, 0.1)
    state = {"optimizer.grads": np.ones(8, "float32"), "optimizer.reached": np.ones(3, bool)}
    Gradients({"optimizer": optimizer}).load_state_dict(state)
    assert optimizer.grads.all() and optimizer._used and not optimizer.is_pending
    Gradients({"optimizer": optimizer}).load_state_dict({})
    for parts, given in (({"optimizer": optimizer}, state | {"optimizer.grads": change(np.ones(8, "float32"))}), ({"other": optimizer}, state),
                         ({"model": Linear(2, 2, rng=np.random.default_rng(0))}, {"model.weight": change(np.ones((2, 2), "float32"))})):
        with pytest.raises(ValueError, match="no parameters have the gradients"):
            Gradients(parts).load_state_dict(given)
    assert not optimizer.grads.any()


def test_a_finished_run_that_is_resumed_trains_no_further(out):
    train(start(out))
    log = (out / "log.jsonl").read_bytes()
    train(start(out, "--resume"), at=dict.fromkeys(range(TOTAL), crash))
    assert (out / "log.jsonl").read_bytes() == log


def test_a_line_of_the_log_cut_off_by_a_crash_is_dropped(tmp_path):
    train(start(tmp_path / "whole"))
    with pytest.raises(Crash):
        train(start(tmp_path / "crashed"), at={8: crash})
    with open(tmp_path / "crashed" / "log.jsonl", "a") as file:
        file.write('{"step": 1')
    train(start(tmp_path / "crashed", "--resume"))
    assert_same_end(tmp_path / "whole", tmp_path / "crashed")


def train_on(data, run, total=TOTAL):
    for step in run.steps(total, np.random.default_rng(0), save_every=SAVE_EVERY, data=data):
        run.log(step, loss=1.0)


def digits(n=20, seed=0):
    return generate_digits(n, 10, seed=seed)


def changed(data, field):
    """The data with one entry of a field changed."""
    array = getattr(data, field).copy()
    array.flat[-1] = 1 - array.flat[-1] % 2
    return dataclasses.replace(data, **{field: array})


@pytest.mark.parametrize("other, message", [
    (lambda: digits(seed=1), "train_images was uint8 .* now uint8 .*[.] Name the same data with --data"),
    (lambda: digits(n=21), r"train_images was uint8 \(20, 28, 28, 1\) \w+, now uint8 \(21, 28, 28, 1\) \w+"),
    *[(lambda field=field: changed(digits(), field), f"data: {field} was [^;]*$")
      for field in ("train_images", "train_labels", "test_images", "test_labels")],
    (lambda: None, "data: name was digits, now None"),
])
def test_resume_refuses_other_data_with_the_same_number_of_steps(out, other, message):
    train_on(digits(), start(out))
    before = (out / "checkpoint.npz").read_bytes()
    with pytest.raises(RunError, match=message):
        train_on(other(), start(out, "--resume"))
    assert (out / "checkpoint.npz").read_bytes() == before
    train_on(dataclasses.replace(digits(), name="of a renamed folder"), start(out, "--resume"))


@dataclasses.dataclass
class Named:
    name: str
    size: int = 3


def test_the_name_of_data_of_ones_own_is_compared(out):
    train_on(Named("cats"), start(out))
    with pytest.raises(RunError, match="name was cats, now dogs"):
        train_on(Named("dogs"), start(out, "--resume"))


def test_a_run_continues_for_more_epochs(tmp_path, capsys):
    """The end is bit for bit that of a run of 3 epochs resumed at the same step. Fewer epochs, and another number of
    steps per epoch, are refused."""
    train(start(tmp_path / "more"))
    train(start(tmp_path / "more", "--resume", "--epochs", "3"), total=TOTAL * 3 // 2)
    assert "--epochs was 2, now 3: the remaining learning rates are those of a run of 3" in capsys.readouterr().out
    assert json.loads((tmp_path / "more/config.json").read_text())["epochs"] == 3
    with pytest.raises(Crash):
        train(start(tmp_path / "whole", "--epochs", "3"), total=TOTAL * 3 // 2, at={TOTAL + 1: crash})
    train(start(tmp_path / "whole", "--epochs", "3", "--resume"), total=TOTAL * 3 // 2)
    lines = [(folder / "log.jsonl").read_text().splitlines() for folder in (tmp_path / "more", tmp_path / "whole")]
    assert [line for line in lines[0] if line not in lines[1]] == [lines[0][TOTAL // 2]]  # the last step of 2 epochs
    (arrays, _), (others, _) = (load_checkpoint(tmp_path / name / "checkpoint.npz") for name in ("more", "whole"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    with pytest.raises(RunError, match="--epochs was 3, now 2"):
        start(tmp_path / "more", "--resume", "--epochs", "2")
    assert start(tmp_path / "more", "--resume").config["epochs"] == 3                    # not given: as before
    with pytest.raises(RunError, match="is of a run of 18 steps in 3 epochs, but this one has 18 in 6 epochs"):
        train(start(tmp_path / "more", "--resume", "--epochs", "6"), total=18)
    with pytest.raises(RunError, match="is of a run of 18 steps in 3 epochs, but this one has 20 in 4 epochs"):
        train(start(tmp_path / "more", "--resume", "--epochs", "4"), total=20)


def test_a_result_of_fewer_epochs_is_removed_when_training_goes_on(out):
    run = start(out)
    train(run)
    run.finish({"loss": 1.0})
    train(start(out, "--resume"))                            # no step is left
    assert (out / "result.json").exists()
    with pytest.raises(Crash):
        train(start(out, "--resume", "--epochs", "4"), total=2 * TOTAL, at={TOTAL: crash})
    assert not (out / "result.json").exists() and json.loads((out / "config.json").read_text())["epochs"] == 4
    again = start(out, "--resume")                           # of more epochs, although no checkpoint was due
    assert (again.step, again.config["epochs"]) == (TOTAL, 4)
    train(again, total=2 * TOTAL)
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == 2 * TOTAL


def test_a_run_that_is_killed_before_it_trains_for_more_epochs_is_as_it_was(out, monkeypatch):
    run = start(out)
    train(run)
    run.finish({"loss": 1.0})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("minicl.run.save_checkpoint", lambda *args: crash())
    with pytest.raises(Crash):
        train(start(out, "--resume", "--epochs", "4"), total=2 * TOTAL)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_has_one_result(out):
    run = start(out)
    train(run)
    run.finish({"loss": 1.0})
    for again in (lambda: run.finish({"loss": 2.0}), lambda: run.log(run.step, loss=1.0)):
        with pytest.raises((RunError, ValueError), match="the run has ended, so nothing more is written|expected one line for"):
            again()
    assert json.loads((out / "result.json").read_text())["loss"] == 1.0


def test_resume_refuses_another_number_of_steps_and_another_script(out):
    train(start(out))
    with pytest.raises(RunError, match="is of a run of 12 steps in 2 epochs, but this one has 13 in 2 epochs"):
        train(start(out, "--resume"), total=13)
    with pytest.raises(RunError, match="was saved by test, but this is another; name another folder with --out"):
        Run(arguments(out, "--resume"), "another")


@pytest.mark.parametrize("edit, part", [
    (lambda text: text + "print('hello')\n", "the script changed"), (lambda text: "", "the script changed"),
    (lambda text: text, None)])
def test_a_run_that_resumes_with_an_edited_script_warns(out, tmp_path, monkeypatch, capsys, edit, part):
    script = tmp_path / "script.py"
    script.write_text("import minicl\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)  # none under xdist
    train(start(out))
    script.write_text(edit(script.read_text()))
    train(start(out, "--resume"))
    shown = capsys.readouterr().out
    assert f"warning: {part} since the checkpoint in {out} was saved" in shown if part else "warning" not in shown


@pytest.mark.parametrize("called", ["script.py", "../project/script.py", "{links}/script.py", "{link}"])
@pytest.mark.parametrize("edited", ["script.py", "beside.py", "package/inner.py", None])
def test_edits_in_the_folder_of_the_script_are_noticed_by_any_path_to_it(out, tmp_path, monkeypatch, capsys, called, edited):
    project = tmp_path / "project"
    (project / "package").mkdir(parents=True)
    for name in ("script.py", "beside.py", "package/inner.py", "not_imported.py"):
        (project / name).write_text("x = 1\n")
    (tmp_path / "links").symlink_to(project)
    (tmp_path / "link").symlink_to(project / "script.py")
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", called.format(links=tmp_path / "links", link=tmp_path / "link"),
                        raising=False)
    for name in ("beside", "package/inner"):                 # Python imports from the script's real folder
        module = types.ModuleType(name)
        module.__file__ = str(project / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
    train(start(out))
    (project / (edited or "not_imported.py")).write_text("x = 2\n")
    if not edited:
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(project / "script.py"))
    train(start(out, "--resume"))
    shown = capsys.readouterr().out
    assert f"warning: the script changed since the checkpoint in {out} was saved" in shown if edited else "warning" not in shown


@pytest.mark.parametrize("before, message", [
    ({}, "the script and minicl changed"), ({"minicl": "0" * 32}, "the script and minicl changed"), (None, "minicl changed")])
def test_a_run_that_resumes_with_an_edited_minicl_warns(out, capsys, before, message):
    train(start(out))
    arrays, meta = load_checkpoint(out / "checkpoint.npz")
    before = {**meta["code"], "minicl": "0" * 32} if before is None else before
    save_checkpoint(out / "checkpoint.npz", {}, {**meta, "code": before})
    start(out, "--resume")
    assert f"warning: {message} since the checkpoint in {out} was saved" in capsys.readouterr().out


@dataclasses.dataclass
class Many:
    """Data whose fields are not only arrays."""
    parts: list
    named: dict
    words: tuple = ("a", "b")
    scale: float = 0.1


def many(k=None, value=1.0):
    parts = [np.zeros(5000), np.zeros((3, 4), "float32")]
    named = {"x": np.zeros(3), "y": [np.zeros(2000, "int64")]}
    arrays = [*parts, named["x"], named["y"][0]]
    if k is not None:
        arrays[k].flat[arrays[k].size // 2] = value
    return Many(parts, named)


@pytest.mark.parametrize("other", [
    *[many(k, value) for k in range(4) for value in (1.0, 2.0)], Many([], {}), dataclasses.replace(many(), scale=0.2),
    dataclasses.replace(many(), words=("a", "c")), dataclasses.replace(many(), parts=tuple(many().parts[:1]))])
def test_arrays_in_lists_and_dicts_are_hashed_whole(out, other):
    assert fingerprint(many()) == fingerprint(many()) != fingerprint(other)


ALIKE = [None, "None", 1, "1", 1.0, True, b"1", np.int64(1), np.float32(1), ("a, b",), ("a", "b"), ("'a', 'b'",), ("a', 'b",), (),
         ("1",), (1,), ((1,), 2), (1, (2,)), {"a": 1}, {"a": "1"}, {"a: 1": 1}, ("a: 1",), {1: 1}, {"1": 1}, np.ones(1), np.ones((1, 1))]


def test_values_with_the_same_text_have_different_fingerprints():
    found = [fingerprint(Many(value, {}))["parts"] for value in ALIKE]
    assert len(set(found)) == len(ALIKE) and all(isinstance(text, str) for text in found)
    assert fingerprint(Many("MNIST", {}))["parts"] == "MNIST"


@pytest.mark.parametrize("held", [np.array([None, 1]), np.ma.ones(3), [object()], {"a": {1, 2}}, Linear, Tensor(np.ones(3)), iter([1])])
def test_data_that_cannot_be_compared_is_refused(held):
    with pytest.raises(TypeError, match="Run.steps: the field parts of data must be an array, text or a number"):
        fingerprint(Many(held, {}))


@pytest.mark.parametrize("change", [
    {"step": -1}, {"code": None}, {"code": "text"}, {"step": 13}, {"step": 1.0}, {"step": None}, {"step": True}, {"total": "12"}, {"seconds": -1},
    {"seconds": None}, {"config": None}, {"config": []}, {"settings": None}, {"settings": []}, {"rng": 3}, {"data": None}, {"log": None}, {"log": [{}]},
    {"log": [{"step": 99}]}, {"log": "log"}, {"log": {}}, {"log": [1]}, {"seconds": True}, {"seconds": "1"}, {"name": None},
    {"total": True}, *({"config": {"epochs": epochs}} for epochs in (None, 0, "3", True)), *({"log": log} for log in (
        [{"step": 1.0}], [{"step": True}], [{"step": -1}], [{"step": "1"}], [{"step": 1}, {"step": 1}], [{"step": 2}, {"step": 1}],
        [{"step": 1, "loss": [0.1]}], [{"step": 1, "loss": {}}], [{"step": 1, "loss": True}], [{"step": 1, "loss": "low"}])),
])
def test_resume_refuses_metadata_of_another_type_or_range(out, change):
    train(start(out))
    arrays, meta = load_checkpoint(out / "checkpoint.npz")
    save_checkpoint(out / "checkpoint.npz", {}, {**meta, **change})
    with pytest.raises(CheckpointError, match="is not the checkpoint of a run"):
        start(out, "--resume")


@pytest.mark.parametrize("rng", [{}, {"bit_generator": "MT19937"}, {"state": {"state": -1, "inc": 1}}, {"state": {}},
                                 {"state": {"state": "1", "inc": 1}}, {"has_uint32": 2**70}, {"uinteger": "x"},
                                 {"has_uint32": 5}, {"has_uint32": -1}, {"has_uint32": True}, {"uinteger": 2**40}, {"uinteger": 1.5},
                                 {"state": {"state": 1, "inc": 3.5}}, {"state": {"state": 2.5, "inc": 3}}, {"more": 1}])
def test_resume_refuses_a_generator_of_another_kind_and_changes_nothing(out, rng):
    train(start(out))
    arrays, meta = load_checkpoint(out / "checkpoint.npz")
    generator = np.random.default_rng(3)
    model = Linear(1, 1, rng=np.random.default_rng(0))
    save_checkpoint(out / "checkpoint.npz", {"model": model}, {**meta, "rng": {**meta["rng"], **rng} if rng else {}})
    other = Linear(1, 1, rng=generator)
    before = generator.bit_generator.state
    weight = other.weight.data.copy()
    with pytest.raises(CheckpointError, match="does not fit this run's rng"):
        next(start(out, "--resume").steps(TOTAL, generator, save_every=SAVE_EVERY, model=other))
    assert generator.bit_generator.state == before and other.weight.data == weight


@pytest.mark.parametrize("damage", [
    lambda log: log.unlink(), lambda log: log.write_text(""), lambda log: log.write_text("{]"),
    lambda log: log.write_bytes(b"\xff" * 100),
], ids=["lost", "empty", "not JSON", "not text"])
@pytest.mark.parametrize("crashed", [False, True])
def test_a_damaged_log_is_restored_from_the_checkpoint(tmp_path, damage, crashed):
    train(start(tmp_path / "whole"))
    if crashed:
        with pytest.raises(Crash):
            train(start(tmp_path / "damaged"), at={8: crash})
    else:
        train(start(tmp_path / "damaged"))
    damage(tmp_path / "damaged" / "log.jsonl")
    run = start(tmp_path / "damaged", "--resume")
    train(run)
    assert_same_end(tmp_path / "whole", tmp_path / "damaged")
    assert run.read_log() == [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]


def test_json_files_hold_no_nan(out):
    run = start(out)
    with pytest.raises(FloatingPointError):
        for step in run.steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY):
            run.log(step, loss=np.float32("nan"), lr=np.float64("inf"), ids=[1.0, -np.inf], count=np.int64(3))
    line = {"step": 0, "loss": None, "lr": None, "ids": [1.0, None], "count": 3}
    assert json.loads((out / "log.jsonl").read_text()) == line
    run.close()
    run = start(out)
    train(run)
    run.finish({"loss": float("nan"), "accuracy": np.float32(0.5)})
    assert json.loads((out / "result.json").read_text()) == {"loss": None, "accuracy": 0.5}


# ---------------------------------------------------------------- one run per folder

@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_the_folder_of_a_running_run_is_refused(out, more):
    run = start(out)
    steps = run.steps(TOTAL, np.random.default_rng(0), save_every=1)
    for _ in range(3):
        run.log(next(steps), loss=1.0)
    with pytest.raises(RunError, match=rf"another run \(pid {os.getpid()}\) is writing there"):
        start(out, *more)
    for step in steps:
        run.log(step, loss=1.0)
    run.finish({"loss": 1.0})
    assert len(start(out, "--resume").read_log()) == TOTAL


def test_partial_files_of_killed_runs_are_removed(out):
    train(start(out))
    left = out / ".checkpoint.npz.0123456789abcdef.part"
    left.write_text("half")
    start(out, "--resume")
    assert not left.exists()


def test_a_run_that_fails_in_its_first_step_leaves_no_folder(out):
    with pytest.raises(Crash):
        for _ in start(out).steps(TOTAL, np.random.default_rng(0), save_every=SAVE_EVERY):
            crash()
    assert not out.exists()


# ---------------------------------------------------------------- Ctrl-C

@pytest.mark.parametrize("step", [0, 3, 4, 7, 11])
def test_ctrl_c_finishes_the_step_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, xp, capsys, step):
    train(start(tmp_path / "whole"), xp)
    with pytest.raises(KeyboardInterrupt):
        train(start(tmp_path / "stopped"), xp, at={step: press_ctrl_c})
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint.npz")[1]["step"] == step + 1
    assert f"interrupted after step {step + 1} of {TOTAL}; continue with the same options and --resume --out" in capsys.readouterr().out
    train(start(tmp_path / "stopped", "--resume"), xp)
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")


def test_a_second_ctrl_c_stops_at_once(out):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(start(out), at={7: twice})
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == SAVE_EVERY


@pytest.mark.parametrize("step", [SAVE_EVERY, TOTAL])
def test_ctrl_c_during_a_save_stops_after_it(out, monkeypatch, step):
    def save_under_ctrl_c(path, parts, meta):
        save_checkpoint(path, parts, meta)
        if meta["step"] == step:
            press_ctrl_c()

    monkeypatch.setattr("minicl.run.save_checkpoint", save_under_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train(start(out))
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == step


def test_a_run_in_another_thread_trains(out):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(train(start(out))))
    thread.start()
    thread.join()
    assert ended and load_checkpoint(out / "checkpoint.npz")[1]["step"] == TOTAL
