"""What the loop of a Run changes is in its checkpoint, or refused, or told: a resumed run ends as an uninterrupted one."""

import re
import contextlib
import copy
import dataclasses
import enum
import itertools
import pickle
import random
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from small_runs import STEPS, Crash, Net, X, arguments, assert_resumes, assert_same_end, run_of, start

from minicl import nn, optim
from minicl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from minicl.methods import BYOL, EMA, MoCo, Queue, frozen_copy
from minicl.modes import modes, restore_modes
from minicl.rng_state import load_rng_state, require_rng_state, rng_state
from minicl.run import Run, RunError

# ---------------------------------------------------------------- modes

def frozen_at(*names):
    def each(step, parts, rng):
        if step == 2:
            for name in names:
                getattr(parts["model"], name).freeze()
    return each


MODES = {
    "eval": lambda step, parts, rng: step == 2 and parts["model"].eval(),
    "eval of one layer": lambda step, parts, rng: step == 2 and parts["model"].norm.eval(),
    "freeze": frozen_at("layer", "norm"), "freeze dropout": frozen_at("dropout"),
    "requires_grad_": lambda step, parts, rng: step == 2 and parts["model"].layer.requires_grad_(False),
    "one parameter": lambda step, parts, rng: step == 2 and parts["model"].layer.bias.requires_grad_(False),
    "frozen and unfrozen": lambda step, parts, rng: step in (1, 3) and (
        parts["model"].layer.freeze() if step == 1 else parts["model"].unfreeze()),
    "by turns": lambda step, parts, rng: parts["model"].train(step % 2 == 0)}


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_a_model_are_part_of_the_checkpoint(tmp_path, mode, capsys):
    assert_resumes(tmp_path, each=MODES[mode])
    assert "warning" not in capsys.readouterr().out


def slower(step, parts, rng):
    parts["optimizer"].lr *= 0.7
    parts["optimizer"].betas = (0.5 + 0.05 * step, 0.9)
    parts["optimizer"].weight_decay += np.float64(0.01)


@pytest.mark.parametrize("where", ["a part", "held by a part"])
def test_the_settings_of_an_optimizer_are_part_of_the_checkpoint(tmp_path, where, capsys):
    make = {} if where == "a part" else {"make": lambda model, rng: {"trainer": (kept := Keeps(model)), "optimizer": kept.optimizer}, "leave": ["model", "optimizer"]}
    assert_resumes(tmp_path, each=slower, **make)
    assert "warning" not in capsys.readouterr().out


class OwnAdam(optim.Adam):
    pass


def test_the_settings_of_an_optimizer_of_ones_own_are_part_of_the_checkpoint(tmp_path, capsys):
    assert_resumes(tmp_path, each=slower, kind=OwnAdam)
    assert "warning" not in capsys.readouterr().out


NESTEROV = {"on": ((0.0, False), {2: ("momentum", 0.9), 3: ("nesterov", True)}), "off": ((0.9, True), {2: ("nesterov", False), 3: ("momentum", 0.0)})}


@pytest.mark.parametrize("to", NESTEROV)
def test_settings_of_which_one_needs_the_other_are_restored(tmp_path, to, capsys):
    (momentum, nesterov), changes = NESTEROV[to]
    assert_resumes(tmp_path, kind=lambda model, lr: optim.SGD(model, lr, momentum=momentum, nesterov=nesterov),
                   each=lambda step, parts, rng: step in changes and setattr(parts["optimizer"], *changes[step]))
    assert "warning" not in capsys.readouterr().out


ORDERS = [dict(order) for order in itertools.permutations({"momentum": 0.9, "nesterov": True, "lr": 0.25, "weight_decay": 0.5}.items())]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_settings_are_restored_in_whatever_order_a_checkpoint_has_them(order, back, capsys):
    optimizer = optim.SGD(nn.Linear(2, 2, rng=np.random.default_rng(0)), 0.5)
    there = optim.SGD(nn.Linear(2, 2, rng=np.random.default_rng(0)), **order)
    optimizer, there = (there, optimizer) if back else (optimizer, there)
    begin, then = modes({"optimizer": optimizer}), modes({"optimizer": there})
    restore_modes({"optimizer": optimizer}, begin, [begin, {"optimizer": {"settings": {key: then["optimizer"]["settings"][key] for key in order}}}], print)
    assert modes({"optimizer": optimizer}) == then and not capsys.readouterr().out


@pytest.mark.parametrize("kind", [BYOL, MoCo])
def test_the_m_of_a_momentum_encoder_may_have_a_schedule(tmp_path, kind, capsys):
    """In each step, as in the paper, or once: a resumed run goes on with it."""
    def make(model, rng):
        encoder, head = nn.MLP((1, 3, 1), (4,), rng=rng), nn.Linear(4, 3, rng=rng)
        return {"method": BYOL(encoder, head, nn.Linear(3, 3, rng=rng)) if kind is BYOL else MoCo(encoder, head, dim=3, queue=8, splits=1)}

    def each(step, parts, rng):
        method = parts["method"]
        if step == 2:
            method.m = 0.5
        for p in (method.online if kind is BYOL else method.query).parameters():
            p.data[...] *= 1.5
        (method.ema.update(method.m) if kind is MoCo else method.update())

    assert_resumes(tmp_path, make=make, each=each)
    assert "warning" not in capsys.readouterr().out


class MakesMoCo:
    """A trainer that makes its method at step 2."""

    def __init__(self, rng):
        self.encoder, self.moco = nn.MLP((1, 3, 1), (4,), rng=rng), None

    def make(self, rng):
        self.moco = MoCo(self.encoder, nn.Linear(4, 3, rng=rng), dim=3, queue=8, splits=1)

    def state_dict(self):
        return {"is made": bool(self.moco), **(self.moco or self.encoder).state_dict()}

    def load_state_dict(self, state):
        if state.pop("is made") and not self.moco:
            self.make(np.random.default_rng(0))
        (self.moco or self.encoder).load_state_dict(state)


def test_the_m_of_what_the_loop_has_made_is_restored(tmp_path, capsys):
    def each(step, parts, rng):
        if step == 2:
            parts["trainer"].make(rng)
        if (moco := parts["trainer"].moco):
            moco.m *= 0.9
            moco.query.head.weight.data[...] += moco.m
            moco.ema.update(moco.m)

    assert_resumes(tmp_path, make=lambda model, rng: {"trainer": MakesMoCo(rng)}, each=each)
    assert "warning" not in capsys.readouterr().out


LATE = {"none": lambda: None, "a buffer": lambda: nn.Buffer(np.zeros(3, "float32")), "a list": lambda: [nn.Buffer(np.zeros(3, "float32"))],
        "a dict": lambda: {"a": nn.Buffer(np.zeros(3, "float32"))}, "a dropout": lambda: nn.Dropout(0.5, rng=np.random.default_rng(0))}


class Late(nn.Module):
    def __init__(self, extra, *, rng):
        self.layer, self.extra = nn.Linear(3, 2, rng=rng), extra


@pytest.mark.parametrize("before, then", [*itertools.product(["none"], LATE), *itertools.product(LATE, ["none"])])
def test_an_array_that_comes_or_goes_in_the_loop_is_an_error(tmp_path, before, then):
    """At the next checkpoint, which nothing could load."""
    wrong = pytest.raises(CheckpointError, match=rf"late.extra\S* was {'made' if before == 'none' else 'removed'} in the loop")
    with wrong if before != then else contextlib.nullcontext():
        run_of(tmp_path / "run", make=lambda model, rng: {"late": Late(LATE[before](), rng=rng)},
               each=lambda step, parts, rng: step == 3 and setattr(parts["late"], "extra", LATE[then]()))


@pytest.mark.parametrize("values", [{"momentum": 1.0}, {"nesterov": True}, {"lr": "0.1"}])
def test_settings_that_cannot_be_restored_are_told(values, capsys):
    optimizer = optim.SGD(nn.Linear(2, 2, rng=np.random.default_rng(0)), 0.5)
    begin = modes({"optimizer": optimizer})
    restore_modes({"optimizer": optimizer}, begin, [begin, {"optimizer": {"settings": values}}], print)
    assert f"warning: optimizer cannot have the settings of the checkpoint {values}" in capsys.readouterr().out


DRAW = {"np.random": lambda: np.random.normal(), "random": lambda: random.random(), "": lambda: random.Random(3).random()}


@pytest.mark.parametrize("name", DRAW)
def test_a_generator_that_all_of_the_process_share_is_told(tmp_path, name, capsys):
    run_of(tmp_path / "run", each=lambda step, parts, rng: DRAW[name]())
    out = capsys.readouterr().out
    assert ("warning" in out, f"what no part saves changed in the loop: the generator of {name} has drawn" in out) == (bool(name),) * 2


def test_an_optimizer_without_memory_may_be_made_in_each_step(tmp_path, capsys):
    def each(step, parts, rng):
        optimizer = optim.SGD(parts["other"], 0.1)
        (parts["other"](X[step])**2).mean().backward(), optimizer.step()

    assert_resumes(tmp_path, make=lambda model, rng: {"other": nn.Linear(3, 2, rng=rng)}, each=each)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("settings", [3, None, [], {"lr": -1.0}, {"lr": "0.1"}, {"lr": None}, {"lr": True}, {"lr": [0.1]}, {"momentum": 1.0}, {"steps": 3}])
def test_a_checkpoint_without_valid_settings_leaves_them(settings):
    optimizer = optim.SGD(nn.Linear(2, 2, rng=np.random.default_rng(0)), 0.5)
    begin = modes({"optimizer": optimizer})
    restore_modes({"optimizer": optimizer}, begin, [begin, {"optimizer": {"settings": settings}}], print)
    assert modes({"optimizer": optimizer}) == begin and optimizer.steps == 0


def test_the_mode_of_a_target_is_part_of_the_checkpoint(tmp_path):
    def make(model, rng):
        target = frozen_copy(model)
        return {"target": target, "ema": EMA(model, target)}

    def each(step, parts, rng):
        if step == 2:
            parts["target"].norm.freeze()
        parts["ema"].update(0.9)
        parts["model"].bank.data[...] = parts["target"](X[step][:4]).data

    assert_resumes(tmp_path, make=make, each=each, leave=["ema"])


@pytest.mark.parametrize("at", [4, 5])
def test_a_layer_that_was_unfrozen_after_the_last_update_is_followed_in_a_resumed_run(tmp_path, at):
    def make(model, rng):
        target = frozen_copy(model)
        return {"target": target, "ema": EMA(model, target)}

    def each(step, parts, rng):
        if step == 2:
            parts["model"].layer.freeze()
        parts["ema"].update(0.9)
        if step == at:
            parts["model"].unfreeze()

    assert_resumes(tmp_path, make=make, each=each, leave=["ema"])


EDITS = {"freezes": (None, "freeze"), "no longer freezes": ("freeze", None), "eval": (None, "eval"), "the same": ("freeze", "freeze")}


@pytest.mark.parametrize("edit", EDITS)
def test_modes_that_the_script_begins_with_are_those_of_the_script(tmp_path, edit, capsys):
    """Where it was edited before it was resumed, the new code is what counts."""
    def make(how):
        return lambda model, rng: getattr(model.layer, how or "train")() and {}

    before, after = EDITS[edit]
    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=4, make=make(before), each=MODES["eval of one layer"])
    model = run_of(tmp_path / "run", resume=True, make=make(after), each=MODES["eval of one layer"])
    assert bool(model.layer._frozen) == (after == "freeze") and model.layer.training == (after is None)
    assert model.norm.training == (edit != "the same")       # the loop's own change is one of the checkpoint's modes
    assert ("warning: the script now freezes" in capsys.readouterr().out) == (edit != "the same")


@pytest.mark.parametrize("modes", [None, [], 3, {}, [{}, {}], [None, None], [3, 4], [[], {"model": 3}], {"model": 3}, {"model": {}}, {"other": {"frozen": ["layer"]}},
                                   {"model": {"evaluation": 3}}, {"model": {"frozen": ["no such name"], "evaluation": [3]}}, "begin"])
def test_a_checkpoint_without_valid_modes_leaves_them(tmp_path, modes):
    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=3)
    arrays, meta = load_checkpoint(tmp_path / "run" / "checkpoint.npz")

    class Saved:
        def __init__(self, name):
            self.name = name

        def state_dict(self):
            return {key.removeprefix(self.name + "."): x for key, x in arrays.items() if key.startswith(self.name + ".")}

    save_checkpoint(tmp_path / "run" / "checkpoint.npz", {name: Saved(name) for name in ("model", "optimizer")},
                    {**meta, "modes": [meta["modes"][0], {"model": {"frozen": 3}}] if modes == "begin" else modes})
    assert all(module.training for module in run_of(tmp_path / "run", resume=True).modules())


# ---------------------------------------------------------------- random generators

def draws(step, parts, rng):
    parts["model"].bank.data[...] = rng.spawn(1)[0].standard_normal((4, 2))


@pytest.mark.parametrize("make", [
    lambda: np.random.default_rng(3), lambda: np.random.default_rng([1, 2]), lambda: np.random.default_rng(np.array([3, 4])),
    lambda: np.random.default_rng(2**100), lambda: np.random.default_rng(3).spawn(2)[1],
    lambda: np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(5, spawn_key=(7,), pool_size=8)))])
def test_generators_that_the_loop_spawns_continue(tmp_path, make):
    run_of(tmp_path / "whole", each=draws, rng=make())
    with pytest.raises(Crash):
        run_of(tmp_path / "crashed", crash=5, each=draws, rng=make())
    run_of(tmp_path / "crashed", resume=True, each=draws, rng=make())
    assert_same_end(tmp_path / "whole", tmp_path / "crashed")


def test_a_generator_without_a_fixed_seed_continues_with_that_of_the_checkpoint():
    first, other = np.random.default_rng(), np.random.default_rng()
    first.spawn(3), other.spawn(5)
    load_rng_state(other, rng_state(first))
    assert other.random() == first.random() and other.spawn(2)[1].random() == first.spawn(2)[1].random()
    assert rng_state(other) == rng_state(first)


def test_the_seed_sequence_that_a_script_holds_continues_too():
    seed = np.random.SeedSequence(3)
    rng = np.random.default_rng(seed)
    seed.spawn(4)
    state = rng_state(rng)
    again = np.random.SeedSequence(3)
    load_rng_state(np.random.default_rng(again), state)
    assert again.spawn(1)[0].spawn_key == seed.spawn(1)[0].spawn_key == (4,)


@pytest.mark.parametrize("seed", [
    3, [], {}, {"entropy": 3}, {"entropy": 3, "spawn_key": [], "pool_size": 4}, {"entropy": "x", "spawn_key": [],
    "pool_size": 4, "n_children_spawned": 0}, {"entropy": 3, "spawn_key": [-1], "pool_size": 4, "n_children_spawned": 0},
    {"entropy": 3, "spawn_key": [], "pool_size": 10**12, "n_children_spawned": 0},
    {"entropy": 3, "spawn_key": [], "pool_size": 4, "n_children_spawned": -1},
    {"entropy": 3, "spawn_key": [], "pool_size": 4, "n_children_spawned": 0, "more": 1}])
def test_a_seed_that_no_generator_can_have_is_refused(seed):
    rng = np.random.default_rng(0)
    with pytest.raises((TypeError, ValueError, KeyError, OverflowError)):
        require_rng_state(rng, {**rng_state(rng), "seed": seed})


# ---------------------------------------------------------------- parts that are missing

class Loader:
    """An object of the script with a state, whose arrays may change their length."""

    def __init__(self, *held):
        self.left, self.held = np.arange(10), held

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, state):
        self.left = state["left"].copy()


class Trainer(Loader):
    """Saves what it holds, under names of its own."""

    def state_dict(self):
        return {"left": self.left, **{f"{k}/{name}": x for k, thing in enumerate(self.held) for name, x in thing.state_dict().items()}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for k, thing in enumerate(self.held):
            thing.load_state_dict({name.removeprefix(f"{k}/"): x for name, x in state.items() if name.startswith(f"{k}/")})


class Best:
    """A state whose names and dtypes change: the best weights so far."""

    def __init__(self):
        self.best: dict = {}

    def state_dict(self):
        return dict(self.best)

    def load_state_dict(self, state):
        self.best = {name: np.array(x) for name, x in state.items()}


def take(step, parts, rng):
    parts["loader"].left = parts["loader"].left[1:]
    parts["model"].bank.data[...] = parts["loader"].left.sum()


def test_arrays_of_a_scripts_own_part_may_change_their_length(tmp_path):
    assert_resumes(tmp_path, make=lambda model, rng: {"loader": Loader()}, each=take)


def improve(step, parts, rng):
    parts["best"].best = {f"step {step}": parts["model"].layer.weight.data.copy(), "steps": np.arange(step, dtype="int64" if step % 2 else "float32")}


def test_names_and_dtypes_of_a_scripts_own_part_may_change(tmp_path):
    assert_resumes(tmp_path, make=lambda model, rng: {"best": Best()}, each=improve)


def test_a_part_that_the_checkpoint_does_not_have_is_refused(tmp_path):
    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=3)
    with pytest.raises(CheckpointError, match="loader.left: missing"):
        run_of(tmp_path / "run", resume=True, make=lambda model, rng: {"loader": Loader()})


@pytest.mark.parametrize("mode", MODES)
def test_modes_in_a_scripts_own_part_are_part_of_the_checkpoint(tmp_path, mode):
    class Kept(Trainer):
        def __init__(self, *held):
            super().__init__(*held)
            self.optimizer = optim.Adam(held[0], 0.05)
            self.held = (*held, self.optimizer)

    assert_resumes(tmp_path, make=lambda model, rng: {"trainer": (kept := Kept(model)), "optimizer": kept.optimizer},
                   each=MODES[mode], leave=["model", "optimizer"])


@pytest.mark.parametrize("left_out, pass_it", [("model", "model=model"), ("optimizer", "optimizer=optimizer"),
                                               ("target", "target=target"), ("queue", "queue=queue"), ("dropout", "dropout=dropout")])
@pytest.mark.parametrize("loader", [None, "none of it", "saves it", "refers to it"])
def test_a_part_that_is_missing_is_an_error_also_beside_an_object_of_the_script(tmp_path, left_out, pass_it, loader):
    def make(model, rng):
        target = frozen_copy(model)
        extra = {"target": target, "queue": Queue(8, 2), "dropout": nn.Dropout(0.5, rng=rng), "ema": EMA(model, target)}
        thing = {**extra, "model": model, "optimizer": None}[left_out]
        if loader in ("saves it", "refers to it"):
            return {**extra, "loader": (Trainer if loader == "saves it" else Loader)(*[thing][:thing is not None])}
        return extra if loader is None else {**extra, "loader": Loader()}

    def each(step, parts, rng):
        parts["ema"].update(0.9), parts["queue"].enqueue(X[0][:2, :2]), parts["dropout"](X[0])

    leave = ["ema", left_out]
    if loader == "saves it" and left_out != "optimizer":
        run_of(tmp_path / "run", make=make, each=each, leave=leave)
        return
    with pytest.raises(CheckpointError, match=f"not among its parts.*pass {pass_it}"):
        run_of(tmp_path / "run", make=make, each=each, leave=leave)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), frozen_copy])
def test_a_copy_of_a_model_that_the_loop_keeps_is_no_part_that_is_missing(tmp_path, how):
    """As of the best model so far. What is made in the loop is made again in a resumed run."""
    kept = []

    def make(model, rng):
        target = frozen_copy(model)
        return {"target": target, "queue": Queue(8, 2), "ema": EMA(model, target)}

    def each(step, parts, rng):
        parts["ema"].update(0.9), parts["queue"].enqueue(X[0][:2, :2])
        kept.extend(how(parts[name]) for name in ("target", "queue", "model"))
        target = frozen_copy(probe := nn.Sequential(nn.Dropout(0.5, rng=rng), nn.Linear(3, 2, rng=rng)))
        probe(X[0]), EMA(probe, target).update(0.5), (queue := Queue(4, 2)).enqueue(X[0][:2, :2])
        kept.extend([probe, target, queue])

    run_of(tmp_path / "run", make=make, each=each, leave=["ema"])
    assert len(kept) == 6 * STEPS


def test_runs_in_turns_do_not_see_each_others_parts(tmp_path):
    loops = []
    for k in range(2):
        run, rng = start(tmp_path / str(k)), np.random.default_rng(k)
        model = Net(rng=rng)
        target = frozen_copy(model)
        optimizer = optim.SGD(model, 0.1)
        loops.append((run.steps(STEPS, rng, save_every=2, model=model, optimizer=optimizer, target=target),
                      model, optimizer, EMA(model, target), run))
    for steps in zip(*(loop for loop, *_ in loops), strict=True):
        for step, (_, model, optimizer, ema, _) in zip(steps, loops):
            optimizer.zero_grad(), model(X[step]).sum().backward(), optimizer.step(), ema.update(0.9)
    for *_, run in loops:
        run.close()


@pytest.mark.parametrize("change", [lambda x: np.concatenate([x, x[:1]]), lambda x: x[:-1], lambda x: x.astype("float64"),
                                    lambda x: x[0]])
def test_an_array_that_no_run_could_load_is_an_error_at_the_next_checkpoint(tmp_path, change):
    def each(step, parts, rng):
        if step == 3:
            parts["model"].bank.data = change(parts["model"].bank.data)

    with pytest.raises(CheckpointError, match=r"model.bank was float32 \(4, 2\), now .*; keep its shape and dtype"):
        run_of(tmp_path / "run", each=each)


def test_an_array_that_is_assigned_lies_in_memory_as_in_a_checkpoint(tmp_path):
    """Products round in another way where axes lie in another order."""
    def each(step, parts, rng):
        if step == 3:
            parts["model"].bank.data = rng.standard_normal((64, 64)).astype("float32").T
        elif step > 3:
            parts["model"].bank.data[...] = parts["model"].bank.data @ parts["model"].bank.data[:, :1] * 0.1

    def make(model, rng):
        model.bank.data = np.asfortranarray(rng.standard_normal((64, 64)).astype("float32"))
        return {}

    assert_resumes(tmp_path, make=make, each=each)


def test_a_weight_that_is_replaced_has_left_its_optimizer(tmp_path):
    def each(step, parts, rng):
        weight = parts["model"].layer.weight
        weight.data = weight.data / 2

    with pytest.raises(CheckpointError, match=r"model.layer.weight no longer views the buffer of its optimizer.*p.data\[...\] = x"):
        run_of(tmp_path / "run", each=each)


def test_a_frozen_copy_is_named_where_no_load_can_build_it(tmp_path, capsys):
    run_of(tmp_path / "run", make=lambda model, rng: {"target": frozen_copy(nn.Sequential(nn.Linear(2, 2, rng=rng)))})
    assert "target: its weights are saved, but minicl.load will not be able to build it: it is a frozen_copy" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["int32", "int8", "float16", "complex64"])
def test_an_array_that_no_checkpoint_can_hold_is_an_error_at_the_begin(tmp_path, dtype):
    def make(model, rng):
        model.bank.data = np.zeros(3, dtype)
        return {}

    with pytest.raises(CheckpointError, match=f"cannot save model.bank, an array of {dtype}; use float32"):
        run_of(tmp_path / "run", make=make)
    assert not (tmp_path / "run").exists()


class Key(enum.Enum):
    FIRST = 1


@pytest.mark.parametrize("key", [0, np.int64(3), True, (0, 1), None, Key.FIRST, 0.5, b"a"])
def test_a_name_in_a_state_that_is_not_text_is_an_error(tmp_path, key):
    class Means:
        def __init__(self):
            self.means = {key: 0.5}

        def state_dict(self):
            return dict(self.means)

        def load_state_dict(self, state):
            self.means = dict(state)

    with pytest.raises(CheckpointError, match=r"cannot save means: its state_dict\(\) has the name .*, a "):
        run_of(tmp_path / "run", make=lambda model, rng: {"means": Means()})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loop_that_leaves_out_steps_that_are_not_finite_resumes(tmp_path, value):
    def each(step, parts, rng):
        parts["optimizer"].grads[...] = value if step == 4 else 0.1
        with contextlib.suppress(FloatingPointError):
            parts["optimizer"].step()

    assert_resumes(tmp_path, each=each)
    arrays, _ = load_checkpoint(tmp_path / "whole" / "checkpoint.npz")
    assert all(np.isfinite(x).all() for name, x in arrays.items() if x.dtype.kind == "f")


# ---------------------------------------------------------------- what is told

class Averaging(optim.SGD):
    """An optimizer with state besides the state_names."""

    def __init__(self, model, lr):
        super().__init__(model, lr)
        self.slow, self._k, self.view, self.by_layer = self.values.copy(), [0], self.values[:3], dict.fromkeys(self.parameters, 0.1)

    def step(self, *args, **options):
        super().step(*args, **options)
        CHANGE["by"](self)


CHANGE = {"by": lambda optimizer: None}


@pytest.mark.parametrize("change, name", [
    (lambda optimizer: optimizer.slow.__imul__(0.5), "optimizer.slow"), (lambda optimizer: optimizer._k.append(3), "optimizer._k"),
    (lambda optimizer: None, "")])
def test_the_state_of_an_optimizer_of_ones_own_that_is_not_saved_is_told(tmp_path, monkeypatch, capsys, change, name):
    monkeypatch.setitem(CHANGE, "by", change)
    run_of(tmp_path / "run", kind=Averaging)
    shown = capsys.readouterr().out
    assert ("warning" in shown) == bool(name) and bool(re.search(f"settings changed in the loop: {name} (was|has)", shown)) == bool(name)


class SavesAverage(optim.SGD):
    """An optimizer whose state has the average of its weights and a number, by their names."""

    def __init__(self, model, lr):
        super().__init__(model, lr)
        self.average, self.count = self.values.copy(), 0

    def step(self, *args, **options):
        super().step(*args, **options)
        self.average, self.count = 0.9 * self.average + 0.1 * self.values, self.count + 1

    def state_dict(self):
        return {**super().state_dict(), "average": self.average.copy(), "count": self.count}

    def load_state_dict(self, state):
        super().load_state_dict({key: x for key, x in state.items() if key not in ("average", "count")})
        self.average, self.count = state["average"], state["count"]


def test_what_the_state_of_an_optimizer_of_ones_own_has_is_no_setting(tmp_path, capsys):
    assert_resumes(tmp_path, kind=SavesAverage)
    assert "warning" not in capsys.readouterr().out


class ForgetsAverage(SavesAverage):
    def load_state_dict(self, state):
        average = self.average
        super().load_state_dict(state)
        self.average = average


def test_an_optimizer_of_ones_own_that_does_not_load_what_it_saved_is_told(tmp_path, capsys):
    with pytest.raises(Crash):
        run_of(tmp_path / "run", kind=ForgetsAverage, crash=5)
    assert "warning" not in capsys.readouterr().out
    run_of(tmp_path / "run", kind=ForgetsAverage, resume=True)
    assert "average" in capsys.readouterr().out


@dataclasses.dataclass
class Data:
    train_images: np.ndarray


@pytest.mark.parametrize("at", [0, STEPS - 1, None])
def test_data_that_the_loop_changes_are_told_once(tmp_path, capsys, at):
    data = Data(np.ones((20, 3), "float32"))
    batch = data.train_images[:4]                            # a view from before the loop

    def each(step, parts, rng):
        if at is not None and step >= at:
            batch[...] += 1

    run_of(tmp_path / "run", data=data, each=each)
    shown = capsys.readouterr().out
    assert shown.count("warning: the arrays of data changed in the loop: train_images was float32 (20, 3)") == (at is not None)


@pytest.mark.parametrize("data", [None, Data(np.ones((8, 3)))])
def test_another_data_folder_is_told_where_the_data_are_not_compared(tmp_path, capsys, data):
    def run(*more):
        run = Run(arguments(tmp_path / "run", *more), "test")
        for _ in itertools.islice(run.steps(3, np.random.default_rng(0), save_every=1, data=data), 2 + ("--resume" in more)):
            pass
        run.close()

    run("--data-dir", str(tmp_path / "a"))
    capsys.readouterr()
    run("--data-dir", str(tmp_path / "b"), "--resume")
    assert ("warning: --data-dir was" in capsys.readouterr().out) == (data is None)


SCRIPT = """
import sys
sys.path.insert(0, {place!r})
import numpy as np
from minicl.run import Run, RunError
from small_runs import arguments
def main():
    run = Run(arguments(*sys.argv[1:]), "train")
    rng = np.random.default_rng(0)
    for step in run.steps({steps}, rng, save_every=1):
        rng.random()                                         # {comment}
        if step == 1 and "--resume" not in sys.argv:
            run.stop()
    run.finish({{}})
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("how", [["-m", "cProfile", "-o", "profile", "train.py"], ["-c", "import train; train.main()"],
                                 ["starter.py"]], ids=lambda how: how[1 % len(how)])
def test_an_edited_script_is_told_however_it_was_started(tmp_path, how):
    """The main program may be another file than the one that makes the Run."""
    (tmp_path / "starter.py").write_text("import train\ntrain.main()\n")

    def run(comment, *more):
        (tmp_path / "train.py").write_text(SCRIPT.format(place=str(Path(__file__).parent), steps=4, comment=comment))
        done = subprocess.run([sys.executable, *how, str(tmp_path / "run"), *more], cwd=tmp_path, capture_output=True, text=True,
                              timeout=100)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    run("first")
    assert "the script changed" not in run("first", "--resume")
    (tmp_path / "run" / "result.json").unlink()
    assert "warning: the script changed since the checkpoint" in run("edited", "--resume")


def test_names_in_a_log_are_text_from_the_first_line_on(tmp_path):
    run = start(tmp_path / "run")
    for step in run.steps(2, np.random.default_rng(0), save_every=1):
        run.log(step, loss=1.0, each={0: 1.0, np.int64(2): float("nan"), True: [{2.5: 3}]})
        assert run.read_log()[-1]["each"] == {"0": 1.0, "2": None, "true": [{"2.5": 3}]}
        run.read_log()[-1]["each"]["true"].append("not in the log")
    run.finish({0: 0.5})
    assert "not in the log" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert (tmp_path / "run" / "result.json").read_text() == '{\n  "0": 0.5\n}\n'


@pytest.mark.parametrize("metric, error", [({0: 1, "0": 2}, ValueError), ({(1, 2): 3}, TypeError)])
def test_names_that_a_log_cannot_hold_are_refused(tmp_path, metric, error):
    run = start(tmp_path / "run")
    with pytest.raises(error, match="same text in JSON|keys must be"):
        for step in run.steps(2, np.random.default_rng(0), save_every=1):
            run.log(step, loss=1.0, each=metric)
    run.close()


def test_a_loader_that_draws_before_the_first_step_is_refused(tmp_path):
    """In zip() the first argument is asked first: a resumed run would draw its first batch again."""
    def batches(rng):
        while True:
            yield rng.standard_normal(3)

    rng = np.random.default_rng(0)
    run = start(tmp_path / "run")
    with pytest.raises(RunError, match="rng has drawn between run.steps.*in zip.. write run.steps.* first"):
        for _, _ in zip(batches(rng), run.steps(3, rng, save_every=1)):
            pass
    run.close()
    run, rng = start(tmp_path / "other"), np.random.default_rng(0)
    assert len([step for step, _ in zip(run.steps(3, rng, save_every=1), batches(rng))]) == 3
    run.close()


def test_the_state_of_a_scripts_own_part_may_be_kept_and_changed(tmp_path):
    """As a loaded array that becomes an attribute, and a number that is an array then."""
    class Position:
        def __init__(self):
            self.at, self.weights = 0, np.ones(3)

        def state_dict(self):
            return {"at": self.at, "weights": self.weights}

        def load_state_dict(self, state):
            self.at, self.weights = state["at"], state["weights"]

    def each(step, parts, rng):
        parts["position"].at += 2
        parts["position"].weights *= 0.5

    assert_resumes(tmp_path, make=lambda model, rng: {"position": Position()}, each=each)


DEEP = {"a namespace in namespaces": lambda held: types.SimpleNamespace(a=types.SimpleNamespace(b=types.SimpleNamespace(c=held))),
        "a closure": lambda held: lambda: held, "a default": lambda held: lambda held=held: held}


@pytest.mark.parametrize("where", DEEP)
def test_modes_of_a_model_that_an_own_part_holds_deep_inside_are_part_of_the_checkpoint(tmp_path, where):
    class Deep:
        def __init__(self, model):
            self.trainer = DEEP[where](Trainer(model, optim.Adam(model, 0.05)))
            self.find = {"a namespace in namespaces": lambda: self.trainer.a.b.c}.get(where, lambda: self.trainer())
            self.optimizer = self.find().held[1]

        def state_dict(self):
            return self.find().state_dict()

        def load_state_dict(self, state):
            self.find().load_state_dict(state)

    assert_resumes(tmp_path, make=lambda model, rng: {"deep": (deep := Deep(model)), "optimizer": deep.optimizer},
                   each=MODES["freeze"], leave=["model", "optimizer"])


class Keeps(Trainer):
    """A trainer that keeps a copy of its best model, in an attribute before the model, and makes a target."""

    def __init__(self, model):
        self.best = self.target = None
        self.model, self.optimizer = model, optim.Adam(model, 0.05)
        super().__init__(model, self.optimizer)


def keep_best(step, parts, rng):
    if step % 3 == 1:
        model = parts["keeps"].model.eval()
        parts["keeps"].best, parts["keeps"].target = copy.deepcopy(model), frozen_copy(model)
        model.train()


def test_modes_are_those_of_the_models_of_the_begin(tmp_path, capsys):
    assert_resumes(tmp_path, make=lambda model, rng: {"keeps": (keeps := Keeps(model)), "optimizer": keeps.optimizer},
                   each=keep_best, leave=["model", "optimizer"])
    lines = {line.partition(";")[0] for line in capsys.readouterr().out.splitlines() if "warning" in line}
    assert lines == {"warning: what no part saves changed in the loop: a Net was made, which is still there",
                     "warning: keeps.best has other values after load_state_dict() than at the checkpoint, so this run may go "
                     "on in another way than an uninterrupted one"}


def test_a_snapshot_in_a_trainer_is_not_weighed_with_what_it_saves(tmp_path):
    """Where the model is a part of its own, and the trainer saves both."""
    assert_resumes(tmp_path, make=lambda model, rng: {"keeps": (keeps := Keeps(model)), "optimizer": keeps.optimizer},
                   each=keep_best, leave=["optimizer"])


class Refers(Keeps):
    """A trainer that also refers to parts of its model, as for clipping."""

    def __init__(self, model):
        self.parameters, self.encoder = list(model.parameters()), model.layer
        super().__init__(model)


def test_what_a_trainer_holds_twice_is_weighed_once(tmp_path):
    assert_resumes(tmp_path, make=lambda model, rng: {"keeps": (keeps := Refers(model)), "optimizer": keeps.optimizer},
                   each=keep_best, leave=["model", "optimizer"])


class One:
    """Holds one bare Parameter, and saves it."""

    def __init__(self, tau):
        self.tau = tau

    def state_dict(self):
        return {"tau": self.tau.data}

    def load_state_dict(self, state):
        self.tau.data[...] = state["tau"]


@pytest.mark.parametrize("at", [None, 2])
def test_a_bare_parameter_of_an_own_part_is_saved_with_its_mode(tmp_path, at):
    def make(model, rng):
        tau = nn.Parameter(np.array(0.3, "float32"))
        return {"one": One(tau), "optimizer": optim.SGD([*model.named_parameters(), ("tau", tau)], 0.1)}

    def each(step, parts, rng):
        tau, optimizer = parts["one"].tau, parts["optimizer"]
        if step == at:
            tau.requires_grad = False
        optimizer.zero_grad()
        ((parts["model"](X[step])**2).mean() * tau).backward()
        optimizer.step()

    assert_resumes(tmp_path, make=make, each=each)


@dataclasses.dataclass
class Unannotated:
    name: str = "mine"
    train_images = np.ones((8, 3))


@dataclasses.dataclass(slots=True)
class WithSlots:
    train_images: np.ndarray


@pytest.mark.parametrize("where", ["class", "attribute", "slots"])
def test_arrays_of_data_that_are_no_fields_are_compared_too(tmp_path, monkeypatch, where):
    def data(images):
        if where == "slots":
            return WithSlots(images)
        made = Unannotated()
        monkeypatch.setattr(Unannotated if where == "class" else made, "train_images", images)
        return made

    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=3, data=data(np.ones((20, 3))))
    with pytest.raises(RunError, match="is of a run on other data: train_images was float64"):
        run_of(tmp_path / "run", resume=True, data=data(np.zeros((20, 3))))
    run_of(tmp_path / "run", resume=True, data=data(np.ones((20, 3))))


@pytest.mark.parametrize("late", [False, True])
def test_moco_has_no_settings_that_change(tmp_path, capsys, late):
    rng = np.random.default_rng(0)
    run, moco = start(tmp_path / "run"), MoCo(nn.MLP((2, 2, 1), (4,), rng=rng), nn.Linear(4, 3, rng=rng), dim=3, queue=8, splits=1)
    optimizer = optim.SGD(moco, 0.1)
    x = np.ones((4, 2, 2, 1), "float32")
    for step in run.steps(4, rng, save_every=1, model=moco, optimizer=optimizer):
        if late and step:
            moco.update()
        optimizer.zero_grad(), moco.loss(moco(x)[1], moco.encode_keys(x, rng), 0.2).backward(), optimizer.step()
        if not late:
            moco.update()
    assert moco.is_pending == late
    run.finish({})
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("at", [None, 0, STEPS - 2])
def test_another_log_every_is_told(tmp_path, capsys, at):
    run, rng = start(tmp_path / "run"), np.random.default_rng(0)
    model = Net(rng=rng)
    run.log_every = 2
    for step in run.steps(STEPS, rng, save_every=1, model=model):
        if step == at:
            run.log_every = 3
    told = "warning: the run changed in the loop: run.log_every was 2, now 3" in capsys.readouterr().out
    assert told == (at is not None)


@pytest.mark.parametrize("trained", [0, 1, 3])
def test_weights_of_this_process_that_a_checkpoint_replaces_are_told(tmp_path, trained, capsys):
    """As by a second stage that has a checkpoint already, when the first one is extended."""
    rng, x = np.random.default_rng(0), np.ones((4, 3), "float32")
    encoder, head = nn.Linear(3, 2, rng=rng), nn.Linear(2, 2, rng=rng)

    def stage(folder, epochs, model, *more):
        run = start(tmp_path / folder, *more)
        encoder.freeze() if model is head else encoder.unfreeze()
        head.unfreeze() if model is head else head.freeze()
        optimizer = optim.SGD(model, 0.1)
        for _ in run.steps(epochs, rng, save_every=1, encoder=encoder, head=head, optimizer=optimizer):
            optimizer.zero_grad(), (head(encoder(x))**2).mean().backward(), optimizer.step()
        run.finish({}), run.close()

    stage("first", 2, encoder)
    stage("second", 2, head)
    if trained:
        stage(f"more {trained}", trained, encoder)
    capsys.readouterr()
    stage("second", 2, head, "--resume")
    assert ("warning: SGD.step() has changed encoder.weight in this process, and" in capsys.readouterr().out) == bool(trained)


# ---------------------------------------------------------------- after the loop

AFTER = {
    "in place": lambda p: p.data.__setitem__(..., 0.5 * p.data), "rounded": lambda p: np.round(p.data, 1, out=p.data),
    "assigned": lambda p: setattr(p, "data", 0.5 * p.data), "multiplied": lambda p: p.data.__imul__(0.5), "read": lambda p: p.data.sum()}


@pytest.mark.parametrize("how", AFTER)
@pytest.mark.parametrize("part", ["layer.weight", "bank"])
def test_what_is_changed_by_hand_after_the_loop_is_told(tmp_path, capsys, part, how):
    run, rng = start(tmp_path / "run"), np.random.default_rng(0)
    model = Net(rng=rng)
    optimizer = optim.SGD(model, 0.1)
    for step in run.steps(STEPS, rng, save_every=3, model=model, optimizer=optimizer):
        optimizer.zero_grad(), model(X[step]).sum().backward(), optimizer.step()
        model.bank.data[...] = 1 / 3
    AFTER[how](dict(model.named_state())[part])
    run.finish({})
    told = f"warning: an assignment to .data has changed model.{part} after the last checkpoint was saved"
    out = capsys.readouterr().out
    assert told in out if how != "read" else "warning" not in out
