"""Runs whose parts are objects of a script, such as trainers: what they save is in the checkpoint, and what they forget is refused or told."""

import array
import collections
import copy
import enum
import fractions
import functools
import gc
import itertools
import json
import random
import types
import typing
import warnings
import weakref

import numpy as np
import pytest
from small_runs import STEPS, Crash, Net, X, assert_resumes, run_of, start

import minicl
from minicl import nn, ops, optim, run_parts
from minicl.checkpoint import CheckpointError, load_checkpoint
from minicl.methods import EMA, Queue, frozen_copy

OWN = ["model", "optimizer"]                                 # parts that only the trainer saves


class Trainer:
    """Saves what is in `saved`, by name."""

    def __init__(self, saved, **held):
        self.saved, self.held = saved, held

    def state_dict(self):
        return {f"{name}/{key}": x for name, thing in self.saved.items() for key, x in thing.state_dict().items()}

    def load_state_dict(self, state):
        for name, thing in self.saved.items():
            thing.load_state_dict({key.partition("/")[2]: x for key, x in state.items() if key.partition("/")[0] == name})


def freeze_a_layer(step, parts, rng):
    if step == 2:
        parts["model"].norm.freeze()


# ---------------------------------------------------------------- what a trainer forgets

FORGOTTEN = {
    "optimizer": lambda model, optimizer, rng: (optimizer, lambda: None),
    "model": lambda model, optimizer, rng: (model, lambda: None),
    "target": lambda model, optimizer, rng: (target := frozen_copy(model), functools.partial(EMA(model, target).update, 0.9)),
    "queue": lambda model, optimizer, rng: (queue := Queue(8, 2), lambda: queue.enqueue(X[0][:2, :2])),
    "dropout": lambda model, optimizer, rng: (dropout := nn.Dropout(0.5, rng=rng), lambda: dropout(X[0])),
}


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("kind", FORGOTTEN)
@pytest.mark.parametrize("is_forgotten", [False, True])
def test_what_a_trainer_holds_and_does_not_save_is_an_error(tmp_path, kind, is_forgotten, snapshot):
    def make(model, rng):
        optimizer = optim.Adam(model, 0.05)
        thing, move = FORGOTTEN[kind](model, optimizer, rng)
        held = {"model": model, "optimizer": optimizer, kind: thing}
        trainer = Trainer({name: x for name, x in held.items() if name != kind or not is_forgotten}, **held, best=None)
        return {"trainer": trainer, "optimizer": optimizer, "move": move}

    def each(step, parts, rng):
        parts["move"]()
        if snapshot:
            parts["trainer"].held["best"] = copy.deepcopy(parts["model"])

    options = {"make": make, "each": each, "leave": [*OWN, "move"]}
    if not is_forgotten:
        return assert_resumes(tmp_path, **options)
    with pytest.raises(CheckpointError, match=f"the {kind} is not among its parts, but .*; pass {kind}={kind}, or save its values"):
        run_of(tmp_path / "run", **options)


def test_a_second_optimizer_that_a_trainer_forgets_is_an_error(tmp_path):
    def make(model, rng):
        first, second = optim.Adam(model.layer, 0.05), optim.Adam(model.last, 0.05)
        optimizer = types.SimpleNamespace(zero_grad=lambda: (first.zero_grad(), second.zero_grad()), step=lambda: (first.step(), second.step()))
        return {"trainer": Trainer({"model": model, "first": first}, second=second), "optimizer": optimizer}

    with pytest.raises(CheckpointError, match="the optimizer is not among its parts, but one has updated weight"):
        run_of(tmp_path / "run", make=make, leave=OWN)


@pytest.mark.parametrize("saves", ["what is not", "all"])
def test_what_another_part_saves_a_trainer_need_not(tmp_path, saves):
    def make(model, rng):
        optimizer = optim.Adam(model, 0.05)
        whole = {"model": model, "optimizer": optimizer}
        return {"trainer": Trainer(whole if saves == "all" else {"optimizer": optimizer}, model=model, files=["a"] * 5000), "optimizer": optimizer}

    assert_resumes(tmp_path, make=make, leave=["optimizer"])


def test_a_trainer_may_save_flat_arrays(tmp_path):
    class Flat(Trainer):
        def state_dict(self):
            model, optimizer = self.saved["model"], self.saved["optimizer"]
            return {"rest": np.concatenate([x.data.ravel() for _, x in model.named_state() if x.data.dtype == np.float32]), "steps": optimizer.steps,
                    "values": optimizer.values, "moments": np.stack([*optimizer.state.values()]), "draws": model.dropout.state_dict()["stream"]}

    def make(model, rng):
        optimizer = optim.Adam(model, 0.05)
        return {"trainer": Flat({"model": model, "optimizer": optimizer}), "optimizer": optimizer}

    run_of(tmp_path / "run", make=make, leave=OWN)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.npz")[1]["step"] == STEPS


def test_the_second_run_of_a_process_needs_its_own_parts(tmp_path):
    rng = np.random.default_rng(0)
    model = Net(rng=rng)
    target, optimizer = frozen_copy(model), optim.SGD(model, 0.1)
    ema = EMA(model, target)

    def phase(k, **parts):
        run = start(tmp_path / str(k))
        for step in run.steps(STEPS, rng, save_every=2, model=model, optimizer=optimizer, **parts):
            optimizer.zero_grad(), model(X[step]).sum().backward(), optimizer.step(), ema.update(0.9)
        run.close()

    phase(0, target=target)
    with pytest.raises(CheckpointError, match="pass target=target"):
        phase(1)
    phase(2, target=target)


# ---------------------------------------------------------------- what is made in the loop

LATE = {
    "target": lambda model, rng: functools.partial(EMA(model, frozen_copy(model)).update, 0.9),
    "queue": lambda model, rng: functools.partial(Queue(8, 2).enqueue, X[0][:2, :2]),
    "dropout": lambda model, rng: functools.partial(nn.Dropout(0.5, rng=rng), X[0]),
    "model": lambda model, rng: functools.partial(probe_step, probe := nn.Linear(3, 2, rng=rng), optim.SGD(probe, 0.1))}


def probe_step(probe, optimizer):
    optimizer.zero_grad(), probe(X[0]).sum().backward(), optimizer.step()


@pytest.mark.parametrize("made_at", [0, 3])
@pytest.mark.parametrize("each_step", [False, True])
@pytest.mark.parametrize("kind", LATE)
def test_what_the_loop_makes_and_uses_in_later_steps_is_an_error(tmp_path, kind, each_step, made_at):
    """A resumed run would make it again, from what is there then. Of what only one step uses, that is right."""
    made = []

    def each(step, parts, rng):
        if each_step or step == made_at:
            made[:] = [LATE[kind](parts["model"], rng)]
        for move in made:
            move()

    if each_step:
        return assert_resumes(tmp_path, each=each)
    with pytest.raises(CheckpointError, match=f"the {kind} is not among its parts"):
        run_of(tmp_path / "run", each=each)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.npz")[1]["step"] == made_at + 1


@pytest.mark.parametrize("part", [nn.Parameter(np.ones(2)), nn.Buffer(np.ones(2)), np.ones(2), 0.5, None])
def test_a_part_without_a_state_is_refused_before_the_first_step(tmp_path, part):
    with pytest.raises(TypeError, match=r"Run.steps: scale must be a Module, an optimizer, or .* got \w+; hold a Parameter"):
        run_of(tmp_path / "run", make=lambda model, rng: {"scale": part})
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_the_loop_makes_for_a_part_is_an_error(tmp_path):
    made = []

    def each(step, parts, rng):
        if not made:
            made.append(optim.Adam(parts["head"], 0.1))
        made[0].zero_grad(), parts["head"](X[step]).sum().backward(), made[0].step()
        for p in parts["head"].parameters():
            p.data *= 0.99                                   # the last change is not the optimizer's

    with pytest.raises(CheckpointError, match="the optimizer is not among its parts, but one has updated head.weight"):
        run_of(tmp_path / "run", make=lambda model, rng: {"head": nn.Linear(3, 2, rng=rng)}, each=each)


def test_a_network_that_the_loop_makes_and_keeps_is_told(tmp_path, capsys):
    """As a random target, or a teacher, which stays as it is."""
    made = []

    def each(step, parts, rng):
        if step == 2:
            made.append(nn.Linear(3, 2, rng=rng))

    run_of(tmp_path / "run", each=each)
    assert "warning: what no part saves changed in the loop: a Linear was made, which is still there" in capsys.readouterr().out


def test_a_buffer_that_the_loop_makes_is_told(tmp_path, capsys):
    made = []

    def each(step, parts, rng):
        if not made:
            made.append(nn.Buffer(np.zeros(2, "float32")))
        made[0].data = made[0].data + 1

    run_of(tmp_path / "run", each=each)
    assert "what no part saves changed in the loop: a Buffer was made, which is still there" in capsys.readouterr().out


def test_copies_of_a_network_that_does_not_draw_itself_have_the_masks_of_an_uninterrupted_run(tmp_path):
    """As in Reptile: each step trains a copy, and the network moves towards it."""
    def each(step, parts, rng):
        fast = copy.deepcopy(parts["slow"])
        parts["slow"].bank.data[...] += fast(X[step][:4]).data

    assert_resumes(tmp_path, make=lambda model, rng: {"slow": Net(rng=rng)}, each=each)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, frozen_copy])
@pytest.mark.parametrize("uses", ["the next step", "a part of it", "this step", "none"])
def test_a_network_that_each_step_makes_for_the_next_is_told(tmp_path, copy_of, uses, capsys):
    """As of a teacher that is the model of the step before."""
    teacher = []

    def each(step, parts, rng):
        if teacher and uses == "the next step":
            parts["model"].bank.data[...] = teacher[0](X[step][:4]).data
        if teacher and uses == "a part of it":
            teacher[0].layer(X[step])
        teacher[:] = [copy_of(parts["model"])]
        if uses == "this step":
            teacher[0](X[step])

    run_of(tmp_path / "run", each=each)
    name = {"the next step": "Net", "a part of it": "Linear"}.get(uses)
    out = capsys.readouterr().out
    assert (f"what no part saves changed in the loop: a {name} was made, which a later step has used" in out) if name else "warning" not in out


def test_what_the_loop_has_made_and_dropped_is_no_error(tmp_path, capsys):
    """As of a probe that is trained for a few steps, also where only the garbage collector frees it."""
    made = []

    def each(step, parts, rng):
        if step % 4 == 0:
            made[:] = [LATE["model"](parts["model"], rng)]
            made[0].again = made[0]
        made[0]()
        if step % 4 == 3:
            made.clear()

    gc.disable()
    try:
        with pytest.raises(CheckpointError, match="the model is not among its parts"):
            run_of(tmp_path / "often", each=each)
        run_of(tmp_path / "run", each=each, save_every=4)
    finally:
        gc.enable()
    assert "warning" not in capsys.readouterr().out.partition("often")[2]


# ---------------------------------------------------------------- states that are not what they seem

def test_the_optimizer_is_missing_also_where_something_else_changes_its_parameters_last(tmp_path):
    def each(step, parts, rng):
        for p in parts["model"].parameters():
            p.data *= 0.99

    with pytest.raises(CheckpointError, match="the optimizer is not among its parts, but one has updated"):
        run_of(tmp_path / "run", each=each, leave=["optimizer"])


class WithoutMoments(optim.Adam):
    def state_dict(self):
        return {name: x for name, x in super().state_dict().items() if not name.startswith(("m.", "v."))}

    def load_state_dict(self, state):
        super().load_state_dict({**super().state_dict(), **state})


BY_HAND = {"in place": lambda p, q: p.data.__setitem__(..., 0.9 * p.data + 0.1 * q.data), "through a view": lambda p, q: np.add(p.data[:1], 1, out=p.data[:1]),
           "by an assignment": lambda p, q: setattr(p, "data", q.data)}


@pytest.mark.parametrize("saves", ["nothing", "it", "through a trainer"])
@pytest.mark.parametrize("how", BY_HAND)
def test_a_target_that_is_moved_by_hand_must_be_saved(tmp_path, how, saves, capsys):
    def make(model, rng):
        target = nn.Linear(3, 4, rng=rng)
        return {"target": target, "trainer": Trainer({"target": target} if saves == "through a trainer" else {})}

    def each(step, parts, rng):
        for p, q in zip(parts["target"].parameters(), parts["model"].layer.parameters()):
            BY_HAND[how](p, q)

    options = {"make": make, "each": each, "leave": [] if saves == "it" else ["target"]}
    if saves == "nothing":
        with pytest.raises(CheckpointError, match="the model is not among its parts, but an assignment to .data has changed"):
            run_of(tmp_path / "run", **options)
        return
    assert_resumes(tmp_path, **options)
    assert "warning" not in capsys.readouterr().out


def test_a_buffer_that_is_written_by_hand_is_told(tmp_path, capsys):
    bank = nn.Buffer(np.zeros((2, 3), "float32"))

    def each(step, parts, rng):
        bank.data[0] = X[step][0]

    run_of(tmp_path / "run", each=each)
    assert "what no part saves changed in the loop: an assignment to .data has changed a Buffer of shape (2, 3)" in capsys.readouterr().out


def test_an_optimizer_with_a_state_dict_of_its_own_saves_what_that_gives(tmp_path):
    with pytest.raises(CheckpointError, match="the optimizer is not among its parts, but one has updated"):
        run_of(tmp_path / "run", kind=WithoutMoments)


def test_a_target_that_equals_the_model_whenever_it_is_saved_is_missing(tmp_path):
    """A hard update in each step: the trainer's state has the values once, and two networks have them."""
    def make(model, rng):
        target = frozen_copy(model)
        optimizer = optim.SGD(model, 0.05)
        return {"trainer": Trainer({"model": model, "optimizer": optimizer}, target=target), "optimizer": optimizer, "ema": EMA(model, target)}

    with pytest.raises(CheckpointError, match="the target is not among its parts"):
        run_of(tmp_path / "run", make=make, each=lambda step, parts, rng: parts["ema"].update(0.0), leave=[*OWN, "ema"])


class Noise(nn.Module):
    def __init__(self, sigma):
        self.sigma = sigma

    def forward(self, x):
        return x + self.sigma


def test_modes_and_numbers_of_what_has_no_weights_are_told(tmp_path, capsys):
    dropout, noise = nn.Dropout(0.5, rng=np.random.default_rng(0)), Noise(0.1)

    def each(step, parts, rng):
        if step == 2:
            dropout.eval()
            noise.sigma = 0.05

    run_of(tmp_path / "run", each=each)
    out = capsys.readouterr().out
    assert "training of a Dropout was True, now False" in out and "sigma of a Noise was 0.1, now 0.05" in out


def test_a_load_state_dict_that_forgets_is_told(tmp_path, capsys):
    class Forgets(Kept):
        def load_state_dict(self, state):
            pass

    def each(step, parts, rng):
        parts["kept"].value += 1

    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=3, make=lambda model, rng: {"kept": Forgets(0)}, each=each)
    run_of(tmp_path / "run", resume=True, make=lambda model, rng: {"kept": Forgets(0)}, each=each)
    assert "warning: kept.value is not as the checkpoint has it after load_state_dict()" in capsys.readouterr().out


# ---------------------------------------------------------------- modes of what it holds

def by_class(model, optimizer):
    class Part:
        def state_dict(self):
            return Trainer({"model": model, "optimizer": optimizer}).state_dict()

        def load_state_dict(self, state):
            Trainer({"model": model, "optimizer": optimizer}).load_state_dict(state)
    return Part()


def in_its_class(model, optimizer):
    class Part(Trainer):
        pass

    Part.saved = {"model": model, "optimizer": optimizer}
    part = object.__new__(Part)
    part.held = {}
    return part


def by_functions(model, optimizer):
    return types.SimpleNamespace(**{name: getattr(Trainer({"model": model, "optimizer": optimizer}), name) for name in ("state_dict", "load_state_dict")})


HIDDEN = {"in a method of a local class": by_class, "in the class": in_its_class}
HELD = {"in a dict": lambda model, optimizer: Trainer({"model": model, "optimizer": optimizer}), "by bound methods": by_functions,
        "by a weak reference too": lambda model, optimizer: Trainer({"model": model, "optimizer": optimizer}, again=weakref.ref(model))}


@pytest.mark.parametrize("where", HELD)
def test_modes_of_what_a_part_holds_are_saved(tmp_path, where, capsys):
    assert_resumes(tmp_path, make=lambda model, rng: {"part": HELD[where](model, optimizer := optim.Adam(model, 0.05)), "optimizer": optimizer},
                   each=freeze_a_layer, leave=OWN)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("change", ["a mode", "a setting", "a parameter", "nothing"])
@pytest.mark.parametrize("where", HIDDEN)
def test_modes_of_what_no_part_refers_to_are_told(tmp_path, where, change, capsys):
    def each(step, parts, rng):
        if step == 2:
            norm = parts["model"].norm
            {"a mode": norm.eval, "a setting": lambda: setattr(norm, "momentum", 0.5), "nothing": lambda: norm.eval().train(),
             "a parameter": lambda: norm.bias.requires_grad_(False)}[change]()

    run_of(tmp_path / "run", make=lambda model, rng: {"part": HIDDEN[where](model, optimizer := optim.Adam(model, 0.05)), "optimizer": optimizer},
           each=each, leave=OWN)
    told = {"a mode": "training of a BatchNorm was True, now False", "a setting": "momentum of a BatchNorm was 0.1, now 0.5",
            "a parameter": "requires_grad of a Parameter was True, now False", "nothing": ""}[change]
    out = capsys.readouterr().out
    assert f"warning: what no part saves changed in the loop: {told}; minicl.load and --resume have what was there at the begin" in out if told else "warning" not in out


def test_gradients_that_wait_in_an_optimizer_that_no_part_refers_to_are_no_lost_ones(tmp_path):
    class Every:
        """Steps with every third gradient."""

        def __init__(self, optimizer):
            self.optimizer, self.count = optimizer, itertools.count()

        def zero_grad(self):
            pass

        def step(self):
            if next(self.count) % 3 == 1:
                self.optimizer.step(), self.optimizer.zero_grad()

    def make(model, rng):
        optimizer = optim.Adam(model, 0.05)
        return {"part": by_class(model, optimizer), "optimizer": Every(optimizer)}

    saved = []
    run_of(tmp_path / "run", make=make, leave=OWN, each=lambda step, parts, rng: saved.append((tmp_path / "run" / "checkpoint.npz").exists() and load_checkpoint(
        tmp_path / "run" / "checkpoint.npz")[1]["step"]))
    assert saved == [False, False, 2, 2, 2, 5, 5, 5]


@pytest.mark.parametrize("nets", [list, set, lambda nets: {net: k for k, net in enumerate(nets)}])
def test_modes_of_equal_networks_are_not_swapped(tmp_path, nets):
    def make(model, rng):
        layers = [nn.Linear(2, 2, rng=rng) for _ in range(5)]
        optimizer = optim.Adam([*model.named_parameters(), *((f"{k}.{name}", p) for k, layer in enumerate(layers) for name, p in layer.named_parameters())], 0.05)
        trainer = Trainer({str(k): layer for k, layer in enumerate(layers)})
        trainer.nets, trainer.saved = nets(layers), trainer.saved
        kept[:] = layers
        return {"trainer": trainer, "optimizer": optimizer}

    def each(step, parts, rng):
        if step == 2:
            kept[3].freeze()
        parts["optimizer"].zero_grad()
        sum(layer(X[step][:, :2]).sum() for layer in kept).backward()
        parts["optimizer"].step()

    kept: list = []
    assert_resumes(tmp_path, make=make, each=each)


class Rebuilds(Trainer):
    """Makes its model and optimizer anew when it loads."""

    def __init__(self, make):
        self.make, self.best = make, None
        self.build()

    def build(self):
        self.model = self.make()
        self.optimizer = optim.Adam(self.model, 0.05)

    saved = property(lambda self: {"mine": self.model, "its optimizer": self.optimizer})

    def load_state_dict(self, state):
        self.build()
        super().load_state_dict(state)


def train_mine(step, parts, rng):
    trainer = parts["trainer"]
    trainer.optimizer.zero_grad(), (trainer.model(X[step])**2).mean().backward(), trainer.optimizer.step()


def rebuilds(model, rng):
    return {"trainer": Rebuilds(lambda: Net(rng=np.random.default_rng(5)))}


def test_modes_of_a_model_that_is_made_anew_are_restored(tmp_path):
    def each(step, parts, rng):
        train_mine(step, parts, rng)
        if step == 2:
            parts["trainer"].model.norm.eval()

    assert_resumes(tmp_path, make=rebuilds, each=each)


@pytest.mark.parametrize("draws", [False, True])
def test_a_model_may_be_replaced_in_the_loop(tmp_path, draws, capsys):
    """Its copy draws other random numbers for a Dropout; so does the model that a resumed run makes."""
    def each(step, parts, rng):
        trainer = parts["trainer"]
        if step == 2:
            kept.append(trainer.model)
            trainer.model = copy.deepcopy(trainer.model)
            trainer.optimizer = optim.Adam(trainer.model, 0.05)
        train_mine(step, parts, rng)
        if step == 3:
            next(module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm)).eval()

    kept: list = []
    assert_resumes(tmp_path, each=each, make=rebuilds if draws else lambda model, rng: {
        "trainer": Rebuilds(lambda: nn.Sequential(nn.Linear(3, 4, rng=(rng := np.random.default_rng(5))), nn.BatchNorm(4), nn.Linear(4, 2, rng=rng)))})
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("forgets", [False, True])
def test_a_head_that_a_trainer_makes_in_the_loop_is_looked_at_too(tmp_path, forgets, capsys):
    class Stages(Trainer):
        head = None

        def next(self):
            self.head = nn.Linear(2, 2, rng=np.random.default_rng(1))
            self.second = optim.Adam(self.head, 0.05)
            self.saved |= {"head": self.head} if forgets else {"head": self.head, "second": self.second}

        def load_state_dict(self, state):
            if any(key.startswith("head/") for key in state):
                self.next()
            super().load_state_dict(state)

    def each(step, parts, rng):
        stages = parts["stages"]
        if step == 2:
            stages.next()
        if step >= 2:
            stages.second.zero_grad(), stages.head(X[step][:, :2]).sum().backward(), stages.second.step()
        if step == frozen_at:
            stages.head.weight.requires_grad_(False)

    options = {"make": lambda model, rng: {"stages": Stages({"model": model, "optimizer": (optimizer := optim.Adam(model, 0.05))}), "optimizer": optimizer},
               "each": each, "leave": OWN}
    frozen_at = None
    if forgets:
        with pytest.raises(CheckpointError, match="the optimizer is not among its parts, but one has updated weight"):
            run_of(tmp_path / "run", **options)
        return
    for frozen_at in (None, 4):
        assert_resumes(tmp_path / str(frozen_at), **options)
    assert "warning" not in capsys.readouterr().out


class Member:
    def __init__(self, number, rng):
        self.number = number
        self.net = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.Linear(4, 1, rng=rng))
        self.optimizer = optim.SGD(self.net, 0.1 / 2**number, momentum=0.9)
        self.hash = int(np.random.default_rng().integers(2**30))             # as by an address, which each process has others of

    def __hash__(self):
        return self.hash


class Population:
    """Networks with an optimizer each, saved by their places in a list or by their numbers."""

    def __init__(self, rng, by="place"):
        self.rng, self.by, self.members = rng, by, [Member(number, rng) for number in range(2)]

    def add(self):
        self.members.append(Member(len(self.members), self.rng))

    def _held(self):
        return {f"{k if self.by == 'place' else x.number}.{part}": vars(x)[part]
                for k, x in enumerate(self.members) for part in ("net", "optimizer")}

    def state_dict(self):
        numbers = [x.number for x in self.members] if self.by == "place" else list(range(len(self.members)))
        return {"numbers": numbers, **{f"{name}/{key}": x for name, part in self._held().items() for key, x in part.state_dict().items()}}

    def load_state_dict(self, state):
        while len(self.members) < len(state["numbers"]):
            self.add()
        del self.members[len(state["numbers"]):]
        for name, part in self._held().items():
            part.load_state_dict({key.partition("/")[2]: x for key, x in state.items() if key.startswith(f"{name}/")})
        for member, number in zip(self.members, state["numbers"]):
            member.number = number if self.by == "place" else member.number


def grow(population, step):
    if step == 2:
        population.members[0].net.steps[0].freeze()
        population.add()
    if step > 2:
        population.members[-1].optimizer.lr *= 0.9


def reorder(population, step):
    population.members.sort(key=lambda member: (step + member.number) % 2)
    if step == 1:
        population.members[0].optimizer.lr *= 0.5
        population.members[1].net.steps[1].freeze()


@pytest.mark.parametrize("by", ["place", "number"])
@pytest.mark.parametrize("change", [grow, reorder])
@pytest.mark.parametrize("waits", [False, True])
def test_modes_and_gradients_follow_what_a_part_moves(tmp_path, change, by, waits, capsys):
    def each(step, parts, rng):
        change(population := parts["population"], step)
        for member in sorted(population.members, key=lambda member: member.number):
            (member.net(X[step]) ** 2).mean().backward()
            if not waits or member.number or step % 4 == 3:
                member.optimizer.step(), member.optimizer.zero_grad()

    assert_resumes(tmp_path, make=lambda model, rng: {"population": Population(rng, by)}, each=each)
    assert "warning" not in capsys.readouterr().out


def test_a_part_may_drop_a_network_with_its_optimizer(tmp_path, capsys):
    def each(step, parts, rng):
        members = parts["population"].members
        if step == 3:
            members.pop()
        for member in members:
            member.optimizer.zero_grad(), (member.net(X[step])**2).mean().backward(), member.optimizer.step()

    assert_resumes(tmp_path, make=lambda model, rng: {"population": Population(rng)}, each=each)
    assert "warning" not in capsys.readouterr().out


PLACES = {                                                   # how an object may hold its members, and how it finds them again
    "a set": (set, lambda held: held), "a deque": (collections.deque, lambda held: held),
    "behind a long list": (lambda members: [[(k, 0.0) for k in range(2000)], members], lambda held: held[1]),
    "by their networks": (lambda members: {member.net: member for member in members}, dict.values),
    "keys of one text": (lambda members: {**dict(zip([1, "1", 2, "2"], members)), "rest": members[4:]},
                         lambda held: [*list(held.values())[:4], *held["rest"]]),
    "one is the best": (lambda members: [members[0], members], lambda held: held[1]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("waits", [False, True])
def test_modes_and_gradients_are_those_of_the_same_network_wherever_it_is_held(tmp_path, place, waits, capsys):
    hold, unfold = PLACES[place]

    class Holder(Population):
        def __init__(self, rng):
            self.by, self.held = "number", hold([Member(number, rng) for number in range(6)])

        members = property(lambda self: sorted(unfold(self.held), key=lambda member: member.number))

        def load_state_dict(self, state):
            super().load_state_dict(state)
            if place == "one is the best":
                self.held[0] = self.members[3]               # as after step 2

    def each(step, parts, rng):
        members = (holder := parts["holder"]).members
        if step == 2:
            members[1].net.steps[0].freeze()
            members[2].optimizer.lr *= 0.5
            if place == "one is the best":
                holder.held[0] = members[3]
        for member in members:
            (member.net(X[step])**2).mean().backward()
            if not waits or (step + member.number) % 3 == 0:
                member.optimizer.step(), member.optimizer.zero_grad()

    assert_resumes(tmp_path, make=lambda model, rng: {"holder": Holder(rng)}, each=each)
    assert "warning" not in capsys.readouterr().out


def test_an_object_too_large_to_look_into_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(run_parts, "MANY", 100)
    with pytest.warns(UserWarning, match="a part of the run refers to more than 100 objects"):
        run_of(tmp_path / "run", make=lambda model, rng: {"holder": Trainer({}, points=[(k, 0.0) for k in range(200)])})


class Scaled(nn.Module):
    def __init__(self, rng):
        self.layer, self.options = nn.Linear(3, 1, rng=rng), {"scale": 1.0}

    def forward(self, x):
        return self.layer(x) * self.options["scale"]


class Slowing(optim.SGD):
    def __init__(self, parameters):
        super().__init__(parameters, 0.1)
        self.factor = 1.0


@pytest.mark.parametrize("changes", ["", "the network", "the optimizer"])
def test_a_setting_of_what_the_loop_made_is_told_when_a_run_resumes(tmp_path, changes, capsys):
    class Late(Trainer):
        def load_state_dict(self, state):
            if state:
                make(self)
            super().load_state_dict(state)

    def make(late):
        late.saved["net"] = Scaled(np.random.default_rng(0))
        late.saved["optimizer"] = Slowing(late.saved["net"])

    def each(step, parts, rng):
        saved = parts["late"].saved
        if step == 1:
            make(parts["late"])
        if saved:
            saved["optimizer"].zero_grad(), saved["net"](X[step]).mean().backward(), saved["optimizer"].step()
            saved["net"].options["scale"] *= 0.5 if changes == "the network" else 1
            saved["optimizer"].factor *= 0.5 if changes == "the optimizer" else 1

    options = {"make": lambda model, rng: {"late": Late({})}, "each": each}
    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=5, **options)
    run_of(tmp_path / "run", resume=True, **options)
    told = {"the network": "net.options was {'dict': {'scale': 0.0625}}", "the optimizer": "optimizer.factor was 0.0625, now 1.0"}.get(changes)
    assert (f"warning: after load_state_dict() what the loop had made is not as it was: late.saved.{told}" in (out := capsys.readouterr().out)) == ("warning" in out) == bool(changes)


def test_a_stage_that_is_applied_again_when_it_is_loaded_is_no_other_script(tmp_path, capsys):
    class Stage:
        def __init__(self, model):
            self.model, self.stage = model, 0

        def apply(self):
            if self.stage:
                self.model.layer.freeze()

        def state_dict(self):
            return {"stage": self.stage}

        def load_state_dict(self, state):
            self.stage = state["stage"]
            self.apply()

    def each(step, parts, rng):
        if step == 2:
            parts["stage"].stage = 1
            parts["stage"].apply()
        if step == 3:
            parts["model"].norm.eval()

    assert_resumes(tmp_path, make=lambda model, rng: {"stage": Stage(model)}, each=each)
    assert "warning" not in capsys.readouterr().out


# ---------------------------------------------------------------- values of a state

class Colour(enum.IntEnum):
    RED = 1


class Pair(typing.NamedTuple):
    first: int
    second: int


class Kept:
    """A state of one value."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


VALUES = [3, 0.1, True, np.float32(0.1), np.float64(0.1), np.int64(3), np.bool_(True), [1.5, 2.5], (1, 2), [], [[1, 2], [3, 4]], [True, False],
          float("inf"), [-float("inf"), 1.0], np.float64("inf"), [np.ones(2, "float32"), np.zeros(2, "float32")], (np.arange(3),), [np.eye(2)] * 3,
          [np.float32(1), np.float32(2)], (np.int64(1),), np.array(2.0), np.arange(3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
          np.moveaxis(np.arange(24.0).reshape(2, 3, 4), 0, 1), np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1), np.zeros((1, 3)).T, np.zeros((0, 3)).T]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_of_a_state_comes_back_as_it_was(tmp_path, value):
    found = []

    def each(step, parts, rng):
        found.append(parts["kept"].value)

    with pytest.raises(Crash):
        run_of(tmp_path / "run", crash=3, make=lambda model, rng: {"kept": Kept(value)})
    run_of(tmp_path / "run", resume=True, make=lambda model, rng: {"kept": Kept(None)}, each=each)
    assert type(found[0]) is type(value) and str(found[0]) == str(value) and getattr(found[0], "dtype", 0) == getattr(value, "dtype", 0)
    if isinstance(value, np.ndarray):
        assert found[0].strides == value.strides or value.size <= max(value.shape, default=1)
    if isinstance(value, (list, tuple)):
        assert [(type(x), getattr(x, "dtype", 0)) for x in found[0]] == [(type(x), getattr(x, "dtype", 0)) for x in value]


@pytest.mark.parametrize("value", [[1, 2.5], [True, 2], (1, (2,)), [1.0, np.float32(2)], [(1, 2), (3, 4)], [np.ones(2), np.ones(3)], [np.ones(2), np.arange(2)],
                                   [np.ones(2, "float32"), np.ones(2)], [[np.ones(2)]], [np.asfortranarray(np.eye(3))], [np.ones(1), 1.0], [Colour.RED],
                                   [collections.deque([1, 2])]], ids=repr)
def test_a_list_that_would_come_back_otherwise_is_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="(?s)cannot save kept.value: (.* would come back as .*; give an array, or a list of numbers|.*lists of equal length)"):
        run_of(tmp_path / "run", make=lambda model, rng: {"kept": Kept(value)})


@pytest.mark.parametrize("value", [collections.deque([1, 2]), Colour.RED, range(3), array.array("d", [1.0]), {1, 2}, {"a": 1}, None, "text", b"text", 3 + 4j,
                                   types.SimpleNamespace(), np.eye(1).view(np.matrix), fractions.Fraction(1, 3), Pair(1, 2)], ids=repr)
def test_a_value_that_is_no_array_number_or_list_is_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="cannot save kept.value: expected an array, a number or a list of them, got a .*; (convert it, as by np.asarray|give its JSON|leave it out)"):
        run_of(tmp_path / "run", make=lambda model, rng: {"kept": Kept(value)})


class Sampler:
    """Draws from a generator of its own, whose state it saves as the message says."""

    def __init__(self):
        self.rng = np.random.default_rng(1)

    def state_dict(self):
        return {"rng": np.frombuffer(json.dumps(self.rng.bit_generator.state).encode(), "uint8")}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = json.loads(state["rng"].tobytes())


def test_the_json_of_a_state_comes_back(tmp_path):
    def each(step, parts, rng):
        parts["model"].bank.data[0, 0] = parts["sampler"].rng.random()

    assert_resumes(tmp_path, make=lambda model, rng: {"sampler": Sampler()}, each=each)


class Bare:
    """Holds a Parameter itself, which the loop moves by hand."""

    def __init__(self):
        self.weight = nn.Parameter(np.ones((3, 2), "float32"))

    def state_dict(self):
        return {"weight": self.weight.data}

    def load_state_dict(self, state):
        self.weight.data[...] = state["weight"]


@pytest.mark.parametrize("every", [2, 3])
def test_gradients_of_a_bare_parameter_add_up_over_a_checkpoint(tmp_path, every):
    def each(step, parts, rng):
        weight = parts["bare"].weight
        (ops.matmul(X[step], weight)**2).mean().backward()
        if step % every == every - 1:
            weight.data[...] -= 0.1 * weight.grad
            weight.grad = None

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no optimizer moves them")
        assert_resumes(tmp_path, make=lambda model, rng: {"bare": Bare()}, each=each)


def test_the_use_of_an_unsaved_network_is_told_at_once(tmp_path, capsys):
    """The run may be killed before the next checkpoint."""
    kept: list = []

    def each(step, parts, rng):
        if step == 3:
            kept.append(copy.deepcopy(parts["model"]).eval())
        if step == 4:
            kept[0](X[step])
            raise Crash

    with pytest.raises(Crash):
        run_of(tmp_path / "run", each=each, save_every=4)
    assert "a Net was made, which a later step has used" in capsys.readouterr().out


def test_a_change_that_is_told_does_not_hide_a_later_one(tmp_path, capsys):
    def each(step, parts, rng):
        parts["model"].norm.momentum = 0.1 + 0.01 * step     # in each step
        if step == 4:
            parts["model"].dropout.p = 0.1

    run_of(tmp_path / "run", each=each)
    out = capsys.readouterr().out
    assert out.count("model.norm.momentum was") == 1 and out.count("model.dropout.p was 0.3, now 0.1") == 1


@pytest.mark.parametrize("kind", ["Net", "Queue", "Adam"])
def test_what_a_step_has_made_just_before_a_checkpoint_is_told_at_resume(tmp_path, kind, capsys):
    """It is not in the checkpoint, and no later one may have been saved that would refuse or tell it."""
    def each(step, parts, rng):
        if step == 3:
            kept.append({"Net": lambda: copy.deepcopy(parts["model"]), "Queue": lambda: Queue(8, 4),
                         "Adam": lambda: optim.Adam(nn.Linear(2, 2, rng=rng), 0.1)}[kind]())

    kept: list = []
    with pytest.raises(Crash):
        run_of(tmp_path / "run", each=each, save_every=4, crash=5)
    kept.clear()
    assert "that no part saves" not in capsys.readouterr().out
    run_of(tmp_path / "run", each=each, save_every=4, resume=True)
    out = " ".join(capsys.readouterr().out.split())
    assert f"the loop had made a {kind} " in out and "that no part saves; if a later step uses it" in out


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_dropout_may_be_replaced_after_it_has_drawn(tmp_path, save_every):
    def each(step, parts, rng):
        if step == 3:
            parts["model"].dropout = nn.Dropout(0.3, rng=rng)

    assert_resumes(tmp_path, each=each, save_every=save_every)


def test_a_gradient_of_zeros_that_no_optimizer_moves_is_not_none_after_a_resume(tmp_path):
    """Code may ask whether there is one."""
    def each(step, parts, rng):
        head = parts["head"]
        parts["model"].bank.data[0, 0] += head.bias.grad is not None
        if head.bias.grad is None:
            (head(X[step]) * 0.0).sum().backward()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no optimizer moves them")
        assert_resumes(tmp_path, make=lambda model, rng: {"head": nn.Linear(3, 2, rng=rng)}, each=each)


GAPS = [np.ones((4, 6))[:, :3], np.ones(6)[::2], np.ones((4, 6)).T[:3], [np.ones((4, 6))[:, :3]]]


@pytest.mark.parametrize("value", [np.arange(3)[::-1], np.flip(np.eye(3)), np.broadcast_to(np.arange(3), (2, 3)), *GAPS], ids=repr)
def test_an_array_that_is_reversed_or_broadcast_or_has_gaps_is_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="cannot save kept.value: an array with gaps, .*or one that is reversed or broadcast .*; give a copy"):
        run_of(tmp_path / "run", make=lambda model, rng: {"kept": Kept(value)})


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("nan")], np.float32("nan"), np.array([1.0, np.inf]), [np.array([np.inf])]], ids=repr)
def test_nan_and_arrays_with_infinity_are_refused(tmp_path, value):
    with pytest.raises(FloatingPointError, match="kept.value is not finite"):
        run_of(tmp_path / "run", make=lambda model, rng: {"kept": Kept(value)})


def test_a_list_that_grows_is_a_list_in_a_resumed_run_too(tmp_path):
    def each(step, parts, rng):
        parts["kept"].value = (parts["kept"].value + [float(step)])[-3:]
        parts["model"].bank.data[...] = sum(parts["kept"].value)

    assert_resumes(tmp_path, make=lambda model, rng: {"kept": Kept([])}, each=each)


# ---------------------------------------------------------------- the same objects again

@pytest.mark.parametrize("order", ["zero_grad first", "zero_grad last"])
def test_a_run_that_is_resumed_with_the_same_objects_has_no_gradients_of_before(tmp_path, order):
    """As in a notebook, after a step that failed between backward() and step()."""
    def train(folder, model, optimizer, *, resume=False, crash=None):
        run, rng = start(folder, *["--resume"][:resume]), np.random.default_rng(0)
        try:
            for step in run.steps(STEPS, rng, save_every=2, model=model, optimizer=optimizer):
                if order == "zero_grad first":
                    optimizer.zero_grad()
                (model(X[step])**2).mean().backward()
                if step == crash:
                    raise Crash
                optimizer.step()
                if order == "zero_grad last":
                    optimizer.zero_grad()
        finally:
            run.close()
        return model.layer.weight.data.copy()

    def objects():
        model = Net(rng=np.random.default_rng(3))
        return model, optim.Adam(model, 0.05)

    expected = train(tmp_path / "whole", *objects())
    same = objects()
    with pytest.raises(Crash):
        train(tmp_path / "crashed", *same, crash=5)
    np.testing.assert_array_equal(train(tmp_path / "crashed", *same, resume=True), expected)


# ---------------------------------------------------------------- optimizers of a script

class Helper:
    def __init__(self):
        self.mean = 0.0


class Slots:
    __slots__ = ("mean",)

    def __init__(self):
        self.mean = 0.0


class Slot(Slots):
    __slots__ = "rate"

    def __init__(self):
        self.mean = self.rate = 0.0


HOLDS = {"an object with slots": Slots, "an object with a slot": Slot, "a generator": lambda: (0.1 for _ in range(100)), "an iterator": lambda: iter([0.1] * 100), "an iterator in a list": lambda: [iter([0.1] * 100)],
         "an object": Helper, "an object in a list": lambda: [Helper()]}


@pytest.mark.parametrize("holds", HOLDS)
def test_what_an_optimizer_of_a_script_holds_is_refused_or_told(tmp_path, holds, capsys):
    class Own(optim.SGD):
        def __init__(self, model, lr):
            super().__init__(model, lr)
            self.held = HOLDS[holds]()

        def step(self, lr=None):
            held = self.held[0] if isinstance(self.held, list) else self.held
            if isinstance(held, (Helper, Slots)):
                name = "rate" if isinstance(held, Slot) else "mean"
                setattr(held, name, getattr(held, name) + 0.1)
            super().step(lr)

    if "object" not in holds:
        with pytest.raises(CheckpointError, match="optimizer.held is or holds an iterator, whose position no checkpoint has"):
            run_of(tmp_path / "run", kind=Own)
        return
    with pytest.raises(Crash):
        run_of(tmp_path / "run", kind=Own, crash=5)
    assert "warning: settings changed in the loop: optimizer.held was" in capsys.readouterr().out
    run_of(tmp_path / "run", kind=Own, resume=True)


def test_an_object_in_a_module_that_the_loop_changes_is_told(tmp_path, capsys):
    class Counts(nn.Module):
        def __init__(self):
            self.helper = Helper()

        def forward(self, x):
            self.helper.mean += 1.0
            return x

    counts = Counts()
    run_of(tmp_path / "run", make=lambda model, rng: {"counts": counts}, each=lambda step, parts, rng: counts(X[0]))
    assert "settings changed in the loop: counts.helper was" in capsys.readouterr().out


@pytest.mark.parametrize("sync", ["an assignment", "a copy"])
def test_a_forgotten_teacher_that_equals_the_model_at_a_checkpoint_is_told_when_a_run_resumes(tmp_path, sync, capsys):
    """Its values are in the state then, but as the model's."""
    def make(model, rng):
        optimizer = optim.Adam(model, 0.05)
        return {"trainer": Trainer({"model": model, "optimizer": optimizer}, teacher=frozen_copy(model)), "optimizer": optimizer}

    def each(step, parts, rng):
        if step % 4 == 3:
            held, model = parts["trainer"].held, parts["trainer"].saved["model"]
            if sync == "a copy":
                held["teacher"] = frozen_copy(model)
            else:
                for (_, p), (_, q) in zip(held["teacher"].named_state(), model.named_state()):
                    p.data[...] = q.data

    with pytest.raises(Crash):
        run_of(tmp_path / "run", make=make, each=each, leave=OWN, save_every=4, crash=5)
    capsys.readouterr()
    run_of(tmp_path / "run", make=make, each=each, leave=OWN, save_every=4, resume=True)
    assert "warning: trainer.held.teacher has other values after load_state_dict() than at the checkpoint" in capsys.readouterr().out


def test_a_buffer_whose_values_are_in_the_state_by_chance_is_told_when_a_run_resumes(tmp_path, capsys):
    class Flagged(nn.Module):
        def __init__(self, model):
            self.model, self.flag = model, nn.Buffer(np.ones(1, "float32"))

    class Forgets(Trainer):
        def state_dict(self):
            return {key: x for key, x in super().state_dict().items() if not key.endswith("/flag")}

        def load_state_dict(self, state):
            flag = self.saved["flagged"].flag.data.copy()
            super().load_state_dict({**state, "flagged/flag": flag})

    def make(model, rng):
        optimizer = optim.SGD(model, 0.05, momentum=0.9)
        return {"trainer": Forgets({"flagged": Flagged(model), "optimizer": optimizer}), "optimizer": optimizer}

    def each(step, parts, rng):
        parts["trainer"].saved["flagged"].flag.data = np.zeros(1, "float32")             # as in a zero of another array

    with pytest.raises(Crash):
        run_of(tmp_path / "run", make=make, each=each, leave=OWN, crash=5)
    told = capsys.readouterr().out
    run_of(tmp_path / "run", make=make, each=each, leave=OWN, resume=True)
    assert "warning" in told + capsys.readouterr().out


@pytest.mark.parametrize("warm_up", [3, 6])
def test_gradients_that_wait_and_are_all_zero_resume(tmp_path, warm_up):
    """A parameter that a backward() has reached has a gradient, also 0: step() decays it, and its momentum moves it."""
    def make(model, rng):
        heads = nn.Sequential(nn.Linear(3, 2, rng=rng), nn.Linear(3, 2, rng=rng))
        return {"heads": heads, "second": optim.SGD(heads, 0.1, momentum=0.9, weight_decay=0.1)}

    def each(step, parts, rng):
        weight = 0.0 if 1 < step < warm_up else 1.0
        (parts["heads"].steps[step % 2](X[step]).sum() * weight).backward()
        if step % 2:
            parts["second"].step(), parts["second"].zero_grad()

    assert_resumes(tmp_path, make=make, each=each)


class Noisy(optim.SGD):
    def __init__(self, parameters, noise):
        super().__init__(parameters, 0.1)
        self.noise = noise


class State:
    def __init__(self, rng):
        self.rng = rng


@pytest.mark.parametrize("noise", [lambda rng: np.random.default_rng(1), lambda rng: State(np.random.default_rng(1)),
                                   lambda rng: [random.Random(1)], lambda rng: rng])
def test_an_optimizer_with_a_generator_of_its_own_is_refused(tmp_path, noise):
    options = {"make": lambda model, rng: {"noisy": Noisy(nn.Linear(2, 2, rng=rng), noise(rng))}}
    if noise(0) == 0:                                        # the run's
        run_of(tmp_path / "run", **options)
        return
    with pytest.raises(CheckpointError, match="noisy.noise is or holds a random generator, whose state no checkpoint has"):
        run_of(tmp_path / "run", **options)


class Holds:
    def __init__(self, inside):
        self.inside = inside


class Calls(nn.Module):
    def __init__(self, held):
        self.held = held


CHANGES = {
    "a deque": (collections.deque([1, 2]), lambda inside: inside.append(3)),
    "a set": ({1, 2}, lambda inside: inside.add(3)),
    "a set of texts": ({"a", "b"}, lambda inside: inside.add("c")),
    "a count": (itertools.count(), next),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_inside_an_object_that_is_an_attribute_is_told(tmp_path, kind, capsys):
    inside, change = copy.deepcopy(CHANGES[kind][0]), CHANGES[kind][1]
    run_of(tmp_path / "run", make=lambda model, rng: {"calls": Calls(Holds(inside))}, each=lambda step, parts, rng: change(parts["calls"].held.inside))
    assert "settings changed in the loop: calls.held was" in capsys.readouterr().out


# ---------------------------------------------------------------- names, and what is half made

class Sums:
    def __init__(self, y=0.0):
        self.y = y

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


@pytest.mark.parametrize("names, fits", [(("s", "s.t"), False), (("model.0", "sums"), False), (("s", "st"), True), (("s.t", "s.u"), True)])
def test_names_of_parts_that_could_mean_the_same_array_are_refused(tmp_path, names, fits):
    make = {"make": lambda model, rng: {name: Sums(float(k)) for k, name in enumerate(names)}}
    if fits:
        return assert_resumes(tmp_path, **make)
    with pytest.raises(ValueError, match=r"Run.steps: the names '(s|model)' and '.*' of parts could mean the same array"):
        run_of(tmp_path / "run", **make)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, fits", [("model model", False), ("model a", True), ("modela", True)])
def test_names_of_models_that_load_would_confuse_are_refused(tmp_path, name, fits):
    make = {"make": lambda model, rng: {name: nn.Linear(2, 2, rng=rng)}}
    if fits:
        run_of(tmp_path / "run", **make)
        assert isinstance(minicl.load(tmp_path / "run", model=name.removeprefix("model ")).model, nn.Linear)
        return
    with pytest.raises(ValueError, match="load.folder, model='model'. could mean the part 'model' or 'model model'"):
        run_of(tmp_path / "run", **make)
    assert not (tmp_path / "run").exists()


HALF_MADE = {
    "optimizer": lambda: optim.SGD(nn.Linear(2, 2, rng=np.random.default_rng(0)), -1.0), "parameter": lambda: nn.Parameter("x"),
    "buffer": lambda: nn.Buffer(np.array([np.nan])), "buffer of a list": lambda: nn.Buffer([1.0]),
    "module": lambda: nn.Linear(2, 0, rng=np.random.default_rng(0)), "encoder": lambda: nn.ConvNet((1, 1, 1), rng=np.random.default_rng(0)),
    "attention": lambda: nn.text.SelfAttention(3, 2, rng=np.random.default_rng(0))}


@pytest.mark.parametrize("kind", HALF_MADE)
def test_what_an_error_has_left_half_made_does_not_disturb_a_run(tmp_path, kind, capsys):
    with pytest.raises((TypeError, ValueError)) as kept:
        HALF_MADE[kind]()
    assert_resumes(tmp_path)
    assert kept.tb and "warning" not in capsys.readouterr().out
