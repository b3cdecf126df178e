"""The momentum encoder: a copy of a model that gets no gradient and follows the model slowly.

    target <- m target + (1 - m) online                                      (1)

after every step, for parameters and buffers. The weights of `t` steps ago have the factor (1 - m) m^t: an exponential
moving average, EMA, over about 1 / (1 - m) steps. It computes MoCo's keys, so that keys of neighbouring steps are
comparable (He et al. 2020, eq. 2), and BYOL's targets. Buffers of integers or bools, such as a count, are copied.

BatchNorm's running averages must match the weights, so they follow by (1) as well. In training the target normalises by
its batch, like every BatchNorm, but does not update averages of its own.
"""

import copy
import warnings

from ..autograd import Tensor
from ..backend import Number, array_module, each_step, follow, fused, weights
from ..checks import require_within
from ..nn import BatchNorm, Buffer, HostBuffer, Module, Parameter
from ..nn.layers import AVERAGED
from ..nn.structure import Structure
from ..tensor import Change, mark_changed, place, region, watch
from ..typing import Array


FOLLOWS = "as online's"                # Module._frozen of a target's layer that is frozen because online's is


class Frozen(Tensor, Buffer):
    """A weight of a target: a Tensor for ops and a Buffer for the Module. It is moved and saved with the model, but
    optimizers, whose weight decay would change it, do not get it."""

    def __init__(self, data: Array):
        super().__init__(data)
        watch([self])


def frozen_copy(module: Module) -> Module:
    """A copy of a Module with Frozen parameters, which shares no array with it. A layer of your own that writes averages
    into a Buffer in training writes into the copy's, too; BatchNorm does not.

    Frozen parameters stay constants: unfreeze() and optimizers do not train them. To train a copy, use copy.deepcopy().
    """
    _require_module("frozen_copy", module)
    for name, part in module.named_state():
        if isinstance(part, Tensor) and type(part) not in (Parameter, Frozen):
            raise TypeError(f"frozen_copy: {name} is a {type(part).__name__}, whose methods and attributes a Frozen array "
                            "does not have; compute with them in a Module's forward, and make it a Parameter")
    copies: dict[int, Buffer] = {id(part): (Frozen if isinstance(part, Tensor) else Buffer)(part.data.copy())
                                 for _, part in module.named_state()         # deepcopy copies others; streams get a key
                                 if isinstance(part, Tensor) or type(part) is Buffer}
    for _, part in module.named_buffers():
        if part.least is not None and id(part) in copies:
            copies[id(part)].least = part.least
    target = copy.deepcopy(module, copies)                                   # uses `copies`, by the original's id
    for layer in target.modules():
        if isinstance(layer, BatchNorm):
            layer.momentum = 0.0                                             # running averages follow by (1) alone
    return target


def _require_module(name, module):
    if not isinstance(module, Module):
        raise TypeError(f"{name}: expected a Module, got {type(module).__name__}")


class EMA:
    """The rule (1) between an online Module and its target = frozen_copy(online).

        target = frozen_copy(online)
        ema = EMA(online, target)
        ...
        ema.update(0.99)                                                     # after each optimizer.step()

    A layer of the target has the mode of online's: train(), eval() and freeze() apply to both. One that is to stay in
    evaluation mode is frozen in the target; its state still follows. Settings of online that are changed later, such as an
    eps or a function in an attribute, do not.
    The target's state is one array, so an update is a gathering copy and three passes, on a GPU a copy and one kernel. All
    state is in the two modules: save those. Raises ValueError if target is not a frozen copy of online.
    """

    _attributes = {"online", "target", "layers", "modes", "structures", "pairs", "names", "copied", "views", "seen",
                   "values", "step"}

    def __init__(self, online: Module, target: Module):
        _require_module("EMA", online)
        _require_module("EMA", target)
        followed, following = ({name: part for name, part in model.named_state() if not isinstance(part, HostBuffer)}
                               for model in (online, target))
        floats = {name: part for name, part in followed.items() if part.data.dtype.kind == "f"}
        if not floats or target.named_parameters() or {name: part.data.shape for name, part in followed.items()} \
                != {name: part.data.shape for name, part in following.items()}:
            raise ValueError(f"EMA: expected target to be frozen_copy(online), got a {type(target).__name__} "
                             f"with {len(target.named_parameters())} parameters and {len(following)} frozen arrays "
                             f"for the {len(followed)} arrays of online")
        self.online, self.target = online, target
        self.layers = list(zip(online.modules(), target.modules()))
        alike = online.training == target.training           # else the copy was made in another mode
        self.modes = [(layer.training, False) if alike and not layer._frozen else None for layer in online.modules()]
        for layer, copied in self.layers:
            if layer._frozen and copied._frozen:
                object.__setattr__(copied, "_frozen", FOLLOWS)
        self.structures = [Structure("EMA", model, parts.items(), (Parameter, Buffer))
                           for model, parts in ((online, followed), (target, following))]
        self.pairs = [(part, following[name]) for name, part in floats.items()]
        self.names = list(floats)
        self.copied = {name: (part, following[name]) for name, part in followed.items() if name not in floats}
        self.views: list[Array] = []
        self.seen: Change | None = None                                      # online's last change when target was used

    def __setattr__(self, name, value):
        if name not in self._attributes:
            raise AttributeError(f"EMA has no attribute {name!r}; the momentum is an argument of update(), or the m of BYOL "
                                 "and MoCo")
        object.__setattr__(self, name, value)

    def require(self, owner: str, online: Module, target: Module) -> None:
        """Raise RuntimeError unless this EMA is of these two, which are attributes of its owner."""
        if self.online is not online or self.target is not target:
            raise RuntimeError(f"{owner}: a network was replaced, but the EMA of the {owner} still moves the target it was "
                               "made for. Load weights into the present ones, online.load_state_dict(...) and then "
                               "ema.update(0), or make the method anew")

    def update(self, m: float | Number) -> None:
        """Apply (1) with 0 <= m <= 1.

        Raises RuntimeError in evaluation mode, or if either Module has gained, lost or replaced a part since.
        """
        new, old, is_flat = each_step(self.pairs[0][1].data, lambda: self._begin(m))
        if not is_flat:
            self._flatten()                                                  # at first, and after .to() or .astype()
        step = self.step
        array_module(step).concatenate([part.data.reshape(-1) for part, _ in self.pairs], out=step)
        _follow(self.values, step, new, old)                                 # (1)
        for part, copied in self.copied.values():
            copied.data[...] = part.data

    def _begin(self, m):
        m = float(m) if isinstance(m, Number) else m
        require_within("EMA", "[0, 1]", m=m)
        if not (self.online.training and (self.target.training or self.target._frozen)):
            what = ("leave it out while online is frozen, or unfreeze() it" if self.online._frozen is True else
                    "call model.train() first")
            raise RuntimeError(f"EMA: update() was called in evaluation mode, but a target follows only in training; {what}")
        for structure in self.structures:
            structure.check()
        self.match()
        self.seen = None
        is_flat = bool(self.views) and all(part.data is view for (_, part), view in zip(self.pairs, self.views))
        mark_changed(zip(self.names, (part for _, part in self.pairs)), "EMA.update()",
                     within=[region(self.values)] if is_flat else [])
        mark_changed(((name, copied) for name, (_, copied) in self.copied.items()), "EMA.update()")
        return [*weights(m), is_flat]

    def match(self) -> None:
        """Give each layer of the target the mode of online's, so that a layer that freeze() fixes is fixed in both.

        One frozen in the target alone stays so. Raises RuntimeError if eval() has changed the target's alone.
        """
        for k, (layer, copied) in enumerate(self.layers):
            mode, before = (layer.training, bool(layer._frozen)), self.modes[k]
            is_fixed = copied._frozen is True                                # by freeze()
            follows = copied._frozen == FOLLOWS and not layer._frozen        # as in a run resumed after unfreeze()
            if (mode != before or not layer.training or follows) and not is_fixed:
                object.__setattr__(copied, "training", layer.training)
                object.__setattr__(copied, "_frozen", FOLLOWS if layer._frozen else False)
            elif layer.training and not copied.training and not is_fixed:
                raise RuntimeError(f"EMA: a {type(layer).__name__} of online is in training mode, but the target's is not, "
                                   "and has to follow: call train() of the whole model. To keep the target's in evaluation "
                                   "mode, freeze() it")
            self.modes[k] = mode

    def used(self) -> None:
        """Warn if online has changed since target was last used, without an update() in between, or was loaded alone."""
        moved, followed = (max((part.changed for part in parts if part.changed and part.changed[2] != AVERAGED),
                               default=None) for parts in zip(*self.pairs, *self.copied.values()))
        if moved and moved[2] == "load_state_dict()" and (followed is None or followed[0] < moved[0]):
            warnings.warn("weights were loaded into the online network after its copy was made, which keeps the earlier "
                          "ones: load them before, or call model.ema.update(0)", stacklevel=3)
        if self.seen not in (None, moved):
            warnings.warn("update() was not called: the online network has changed since the target was last used, and the "
                          "target did not follow; call model.update() after each optimizer.step()", stacklevel=3)
        self.seen = moved

    def __getstate__(self) -> dict:
        return {**vars(self), "views": [], "seen": None}                     # a copy has its own array, and time

    def _flatten(self):
        """Move the target's arrays into self.values and leave each part a view of its slice."""
        dtypes = sorted({str(part.data.dtype) for pair in self.pairs for part in pair})
        if len(dtypes) > 1:
            raise ValueError(f"EMA: expected arrays of one dtype, got {' and '.join(dtypes)}; convert both "
                             "models with .astype()")
        parts = [part for _, part in self.pairs]
        xp = array_module(parts[0].data)
        self.values = xp.concatenate([part.data.reshape(-1) for part in parts])
        self.step = xp.empty_like(self.values)
        self.views = []
        start = 0
        for part in parts:
            stop = start + part.data.size
            place(part, self.values[start:stop].reshape(part.data.shape))
            self.views.append(part.data)
            start = stop
        watch(parts)


@fused
def _follow(xp, target, online, new, old):
    """target = m target + (1 - m) online, in place; online may be used up."""
    follow(xp, target, online, new, old, out=online)
