"""A training step as one CUDA graph: captured once, and launched again for each batch.

A step of a small network is a hundred launches and more, each of which takes the host longer than the GPU. capture() runs
the step's Python once while CUDA notes what it launches. From then on a step is: compute on the host what changes from step
to step, copy that to the GPU in one piece, launch the graph.

    @capture(xp)
    def train(images, lr):
        view1, view2 = two_views(augment, to_float(images, xp), rng)
        ...
        optimizer.step(lr)
        return loss, z

    for step in range(total):
        loss, z = train(train_images[batches[step]], warmup_cosine(step, ...))

What changes is an argument, or is drawn, counted or scheduled by minicl itself (backend/steps.py). The arrays of a graph
lie in a memory pool of its own, which lives as long as it does, so nothing else is ever put there. What else the step read
on the host when it was captured is compared before each launch (guards.py, watch.py).
"""

import contextlib
import functools
import inspect
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .autograd import Tensor, hold_inputs
from .backend import (ELSEWHERE, HostArgument, KindError, Number, Places, Step, capturable, is_array, is_in_step, kind_of,
                      to_host)
from .checks import require_bool
from .distributed import ALONE, World
from .no_grad import LATER, in_no_grad
from .typing import ArrayModule
from .watch import Watch

WHY = {"H2D": "it takes an array from the host, which must be an argument", "D2H": "it waits for the GPU",
       "synchronous": "it waits for the GPU", "StreamCapture": "it waits for the GPU",       # what CuPy's errors mean
       "Number": "it computes with a float argument, which may go to optimizer.step() or update() only",
       "HostArgument": "it computes on the host with an array argument, which would happen once only; move it to the device "
                       "first, with xp.asarray(x)"}
_one_at_a_time = threading.RLock()                           # a capture replaces functions of CuPy
PATIENCE = 10                                                # steps in a row that are computed as something has changed


def capture(xp: ArrayModule, *, world: World = ALONE, log: Callable[[str], None] = print,
            enabled: bool = True) -> Callable[[Callable], Callable]:
    """Decorator of a training step, a function or method of arrays and numbers. The script is the same on every backend.

    Two steps of one kind, with the same shapes, are computed as usual; the next is captured, and from then on the graph is
    launched, with the same results, bit for bit. A step of another kind, such as one of fewer images or after model.eval(),
    is computed as usual. So are all steps on NumPy and of several processes, and those that cannot be captured, for example
    because they wait for the GPU: log is given the reason, once, and .reason keeps it. enabled=False, as a script's option,
    leaves the step as it is.

    What changes in each step must be an argument; all else that the step reads is compared before each launch. A launch runs
    no Python of the step except what minicl computes on the host. A step that is to be captured therefore

    - takes arrays, C-contiguous, which it does not write into; floats, for optimizer.step(lr) and update(); and integers,
      text or None, which are part of its kind. An array on the host is first moved to the device: xp.asarray(x),
      to_float(x, xp), z[x]. Before that only its rows and shape, + - * / with numbers and astype("float32") can be had
    - draws random numbers only through minicl's augmentations and layers
    - returns Tensors that are off the tape, arrays, None, or a tuple of them. A launch gives copies
    - sets nothing on the host that was there before, such as an attribute or a list of losses

    The step before the capture, and the capture, are watched (watch.py): which variables, attributes and lists are read, by
    whatever code, and which functions are called. Numbers are compared by value, lists, dicts and small arrays by their
    entries, objects and arrays of the device by identity. Where one has changed, the step is computed as usual, and captured
    again; if one changes in every step, that is the reason. So is what cannot be compared, such as an iterator, a clock, a
    large array on the host or print(). What the step does not read may change freely. A debugger does not see the steps
    that are watched. If a step sets an entry of a list and sets it back, a transform's draw() may find the latter.

    >>> step = capture(np, log=lambda reason: None)(lambda x: 2 * x)
    >>> step(3.0), step.reason
    (6.0, 'NumPy has no CUDA graphs')
    """
    require_bool("capture", enabled=enabled)

    def decorate(step: Callable) -> Callable:
        if not callable(step) or isinstance(step, type) or any(is_later(step) for is_later in LATER):
            raise TypeError(f"capture: expected a function to decorate, or an object that is called, got {step!r}; the code "
                            "of a generator or an async def runs after the call")
        for name, argument in inspect.signature(step).parameters.items():
            if argument.kind is argument.KEYWORD_ONLY:
                raise TypeError(f"capture: {_name(step)}() takes {name} only as a keyword; a captured step takes its "
                                "arguments by position")
        return Captured(step, xp, world, log) if enabled else step

    return decorate


class Captured:
    """A step as capture() makes it: called as before. reason: why no step is captured, or None."""

    def __init__(self, step: Callable, xp: ArrayModule, world: World, log: Callable[[str], None]):
        functools.update_wrapper(self, step)
        self.step, self.xp, self.world, self.log = step, xp, world, log
        self.graph: Graph | None = None
        self.last: Computed | None = None                    # the last step that was computed
        self.repeats = False                                 # whether it was of the kind of the one before
        self.changes = 0                                     # how many have followed that were not
        self.arrays: dict[int, Any] = {}                     # those that the step itself has, by where their memory is
        self.of_slots: dict[int, dict[str, Any]] = {}        # where an object has no __dict__; by its id: it stays alive
        self.reason: str | None = None
        if xp is np:
            self._give_up("NumPy has no CUDA graphs")
        elif world.size > 1:
            self._give_up(f"{world.size} processes exchange arrays within it")

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if named:
            inputs = self._in_order(inputs, named)
        if self.reason is not None or is_in_step() or in_no_grad() or hold_inputs.get():
            return self.step(*inputs)
        with _one_at_a_time:
            kinds = self._kinds(inputs)
            return self.step(*inputs) if kinds is None else self._run(inputs, kinds)

    def __get__(self, owner: Any, kind: type | None = None) -> "Captured":
        """The captured step of one object, for a step that is a method: each object has a graph of its own."""
        if owner is None:
            return self
        name = f"captured {_name(self.step)} of {id(self)}"
        kept = vars(owner) if hasattr(owner, "__dict__") else self.of_slots.setdefault(id(owner), {})
        if (bound := kept.get(name)) is None or bound.step.__self__ is not owner:      # that of what this is a copy of
            log = self.log if self.reason is None else lambda reason: None
            bound = kept[name] = Captured(self.step.__get__(owner), self.xp, self.world, log)
        return bound

    def __reduce__(self) -> Any:
        """A copy of an object makes graphs of its own, for its methods; a function is its own copy, as in Python."""
        return (type(None), ()) if isinstance(self.step, types.MethodType) else vars(self)["__qualname__"]

    def _run(self, inputs, kinds):
        values: list[Sequence[Any]] = []
        reason, is_other = None, False
        if self.graph is not None and kinds == self.graph.kinds:
            values, fit = self.graph.next_values(inputs)
            if fit:
                self.changes = 0
                return self.graph.launch(inputs, values)
        last = self.last
        changed = last and last.guards and last.guards.changed()
        if last and self.repeats and kinds == last.kinds and not changed and not values and not last.guards.reason:
            try:
                self.graph = Graph(self.step, self.xp, last, inputs)
                self.arrays = self.graph.guards.arrays()
                return self.graph.launch(inputs, self.graph.first)
            except CaptureError as error:
                values, reason = error.values, str(error)
                is_other = isinstance(error.__cause__, KindError)
        result = self._compute(inputs, kinds, values, changed)
        if reason is not None and self.reason is None and not (is_other and not self.repeats):
            self._give_up(reason)                            # nothing is wrong with the step itself, which was computed
        return result

    def _in_order(self, inputs, named):
        bound = inspect.signature(self.step).bind(*inputs, **named)
        bound.apply_defaults()
        if bound.kwargs:
            raise TypeError(f"capture: {_name(self.step)}() takes {', '.join(bound.kwargs)} only as a keyword; a captured "
                            "step takes its arguments by position")
        return bound.args

    def _kinds(self, inputs):
        """What of the inputs must stay: shape and dtype of an array and where it is, nothing of a float, all of the rest;
        None, and the reason, if one cannot be an input."""
        kinds: list[Any] = []
        for x in inputs:
            if isinstance(x, (float, np.floating)):
                kinds.append((type(x), "of any value", ELSEWHERE))
            elif is_array(x) and x.dtype.kind in "fiub" and x.dtype.itemsize <= 8 and x.dtype.isnative:
                if type(x) not in (np.ndarray, np.memmap, self.xp.ndarray):
                    self._give_up(f"argument {len(kinds) + 1} is a {type(x).__name__}, which computes in its own way; pass "
                                  "np.asarray(x)")
                    return None
                if not x.flags.c_contiguous:
                    self._give_up(f"argument {len(kinds) + 1} is not C-contiguous; pass xp.ascontiguousarray(x)")
                    return None
                kinds.append((x.shape, x.dtype, ELSEWHERE, self._own(x)) if isinstance(x, self.xp.ndarray) else
                             kind_of(x, None))
            elif is_array(x):
                self._give_up(f"argument {len(kinds) + 1} is an array of dtype {x.dtype.str}, which the GPU does not have; "
                              "convert it outside, with x.astype()")
                return None
            elif x is None or type(x) in (int, bool, str) or isinstance(x, (np.integer, np.bool_)):      # not a subclass
                kinds.append(kind_of(x, None))
            else:
                self._give_up(f"its arguments must be arrays, numbers, text or None, got {type(x).__name__}")
                return None
        return kinds

    def _own(self, x):
        """Where x lies if it is, or views, an array that the step has: the step may write into it, but not a launch."""
        return x.data.ptr if x.data.mem.ptr in self.arrays else None

    def _compute(self, inputs, kinds, values, changed):
        """The step as usual, watched if it may be captured soon; values: what has been computed on the host for it."""
        before, contents = self.last, _contents(inputs)
        is_same = before is not None and before.kinds == kinds
        with Step(values) as host, Watch(self.step, host) if is_same else contextlib.nullcontext() as guards:
            result = self.step(*inputs)
        if host.supplied:
            raise RuntimeError("capture: the step drew less than when it was captured; what it does on the host must follow "
                               "from its arguments and from the script's variables")
        self.last = Computed(kinds, [kinds for *_, kinds in host.functions], guards)
        self.repeats = is_same and not changed and before.values == self.last.values
        if self.repeats:
            self.graph = None                                # another kind of step has come to stay
        other = changed or before and not is_same and "an argument's shape, or an integer argument"
        self.changes = self.changes + 1 if other else 0
        written = [k for k, (x, y) in enumerate(zip(contents, _contents(inputs)), start=1) if x != y]
        if host.draws_itself:
            self._give_up("it draws random numbers itself; draw them outside, and pass them as arguments")
        elif written:
            self._give_up(f"it writes into argument {written[0]}; let it write into a copy")
        elif reason := _kept_on_tape(result):
            self._give_up(reason)
        elif guards and guards.reason and before.guards and before.guards.reason:
            self._give_up(guards.reason)                     # not only at first, as where a table is made when it is needed
        elif self.changes == PATIENCE:
            self._give_up(f"{other} changes from step to step; only arrays and floats may, as arguments")
        return result

    def _give_up(self, reason):
        self.reason, self.graph, self.last, self.arrays = reason, None, None, {}
        self.log(f"the training step is not captured as a CUDA graph: {reason}")


class Computed(NamedTuple):
    """What of a step that was computed must not change: the kinds of its arguments and of the values that its functions
    gave on the host, and what else it read there, if it was watched."""

    kinds: list[Any]
    values: list[list[Any]]
    guards: Any                                              # a Watch, or None


class CaptureError(RuntimeError):
    """A step could not be captured. values: what it had computed on the host."""

    def __init__(self, message: str, values: list[Sequence[Any]]):
        super().__init__(message)
        self.values = values


def _reason(error, step):
    """What an error says, and at which line of the step."""
    name = _name(step)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.name == name]
    text = " ".join(str(error).split())
    why = next((why for part, why in WHY.items() if part in text), text)
    return f"{name}(){f', line {lines[-1]}' if lines else ''}: {why}"


def _name(step):
    return getattr(step, "__name__", type(step).__name__)


# ---------------------------------------------------------------- one graph

class Graph:
    """What a step launched, and whatever of the host it depends on. first: the host's values for the step captured."""

    def __init__(self, step: Callable, xp: ArrayModule, last: Computed, inputs: Sequence[Any]):
        self.xp, self.kinds = xp, last.kinds
        self.places = Places(xp, [*last.kinds, *sum(last.values, [])])
        self.numbers: list[Any] = list(inputs)               # of the next launch
        self.inputs = [self._place(k, x) for k, x in enumerate(inputs)]
        grads = [(tensor, tensor._grad) for tensor in last.guards.tensors]
        with Step(places=self.places) as host:
            try:
                self.graph, self.result = self._captured(step, host)
                _each_array(self.result, lambda x: x)
                if problem := self.guards.reason:
                    raise ValueError(problem)
                if self.guards.path != last.guards.path:
                    raise ValueError("it runs other code than without a capture, where an argument is another object: by "
                                     "type(x), or x is y")
                if changed := self.guards.changed():
                    raise ValueError(f"it changes {changed}, which no later launch would do again")
            except BaseException as error:
                for undo in reversed(host.undo):
                    undo()
                for tensor, grad in grads:
                    tensor._grad = grad
                if not isinstance(error, Exception):         # Ctrl-C
                    raise
                raise CaptureError(_reason(error, step), host.values) from error
        self.first, self.functions = host.values, host.functions

    def _place(self, k, x):
        """Input number k for the capture: memory on the device, or what stands for a value of the host."""
        if isinstance(x, (float, np.floating)):
            return Number(lambda: self.numbers[k], type(x))
        if isinstance(x, self.xp.ndarray):
            return self.xp.empty_like(x)
        place = self.places.put(x, None)
        return HostArgument(place, lambda: self.numbers[k], type(x)) if isinstance(x, np.ndarray) else place

    def _captured(self, step, host):
        self.pool, stream = self.xp.cuda.MemoryPool(), self.xp.cuda.Stream(non_blocking=True)
        with capturable(self.xp), self.xp.cuda.using_allocator(self.pool.malloc), stream:
            stream.begin_capture()
            try:
                with Watch(step, host) as self.guards:
                    result = step(*self.inputs)
            except BaseException:
                with contextlib.suppress(Exception):         # it says again what was wrong
                    stream.end_capture()
                raise
            return stream.end_capture(), result

    def next_values(self, inputs: Sequence[Any]) -> tuple[list[Sequence[Any]], bool]:
        """What the host's functions give for the next step, and whether it can be launched: what they give is of the kinds
        that were captured, and what the step read is the same. If not, the functions after the first that differs have not
        been called; an error that one raises is raised in its place."""
        self.numbers = list(inputs)
        values: list[Sequence[Any]] = []
        with Step() as step:
            for function, dtype, kinds in self.functions:
                if self.guards.changed(len(values)):
                    return values, False
                values.append(step.outcome(function))
                if isinstance(values[-1], Exception) or [kind_of(value, dtype) for value in values[-1]] != kinds:
                    return values, False
        return values, not self.guards.changed(len(values))

    def launch(self, inputs: Sequence[Any], values: Sequence[Sequence[Any]]) -> Any:
        for place, x in zip(self.inputs, inputs):
            if isinstance(x, self.xp.ndarray):
                place[...] = x
        self.places.fill([*inputs, *(value for entries in values for value in entries)])
        self.graph.launch()
        returned = {id(place): x for place, x in zip(self.inputs, inputs)}   # where the step returns an argument
        return _each_array(self.result, lambda x: returned[id(x)] if id(x) in returned else x.copy())


def _contents(inputs):
    """The bytes of each array among them, which a step must leave as they are: a launch works on copies."""
    return [to_host(x).tobytes() if is_array(x) else b"" for x in inputs]


def _kept_on_tape(result):
    """Why a step's result cannot be had from a launch, whose results are constants: a gradient could flow to it."""
    for x in result if isinstance(result, tuple) else [result]:
        if isinstance(x, tuple) and (reason := _kept_on_tape(x)):
            return reason
        if isinstance(x, Tensor) and (x._requires_grad if x.node is None else x.node.backward is not None):
            return "it returns a Tensor that is still on the tape; return x.detach(), or call backward() in the step"
    return None


def _each_array(result, function):
    """A step's result with function of each array in it. Raises TypeError where it is something else."""
    if isinstance(result, tuple) and (type(result) is tuple or hasattr(result, "_make")):
        parts = [_each_array(part, function) for part in result]
        return tuple(parts) if type(result) is tuple else type(result)(*parts)           # a namedtuple
    if isinstance(result, Tensor):
        return Tensor(_each_array(result.data, function))
    if result is None or is_array(result) and not isinstance(result, np.ndarray):
        return result if result is None else function(result)
    raise TypeError(f"a captured step returns Tensors and arrays of the device, got {type(result).__name__}, which no later "
                    "launch would compute again")
