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
lie in a memory pool of its own, which lives as long as it does, so nothing else is ever put there. What else the step reads
on the host is compared with what it was when the step was captured (surroundings.py).
"""

import contextlib
import functools
import inspect
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .autograd import Tensor, hold_inputs
from .backend import Number, Step, capturable, is_array, is_in_step, kind_of, to_host
from .checks import require_bool
from .distributed import ALONE, World
from .no_grad import in_no_grad, require_plain_function
from .surroundings import Surroundings
from .typing import ArrayModule

ALIGNMENT = 256                                              # bytes, as of cudaMalloc
WHY = {"H2D": "it takes an array from the host, which must be an argument", "D2H": "it waits for the GPU",
       "synchronous": "it waits for the GPU", "StreamCapture": "it waits for the GPU",       # what CuPy's errors mean
       "'Number'": "it computes with a float argument, which may go to optimizer.step() or update() only"}
_one_at_a_time = threading.RLock()                           # a capture replaces functions of CuPy
NUMBER, ON_DEVICE = "a number", "on the device"              # in the kinds of arguments
PATIENCE = 10                                                # steps in a row that are computed as something has changed


def capture(xp: ArrayModule, *, world: World = ALONE, log: Callable[[str], None] = print,
            enabled: bool = True) -> Callable[[Callable], Callable]:
    """Decorator of a training step, a function of arrays and numbers. The script is the same on every backend.

    Two steps of one kind, with the same shapes, are computed as usual; the next is captured, and from then on the graph is
    launched, with the same results, bit for bit. A step of another kind, such as one of fewer images or after model.eval(),
    is computed as usual. So are all steps on NumPy and of several processes, and those that cannot be captured, for example
    because they wait for the GPU: log is given the reason, once, and .reason keeps it. enabled=False, as a script's option,
    leaves the step as it is.

    A launch runs no Python of the step except what minicl computes on the host. A step that is to be captured therefore

    - takes what changes as arguments: C-contiguous arrays, on the host or the device, which it does not write into, and
      floats for optimizer.step(lr). Arithmetic with an array from the host is done on the device,
      and xp.asarray of one is the same array each time: do not write into it
    - draws random numbers only through minicl's augmentations and layers
    - returns Tensors that are off the tape, arrays, None, or a tuple of them. A launch gives copies
    - changes nothing of its own on the host, such as an attribute or a list of losses

    What else its code can read, in whatever file, is compared before each launch: variables, attributes and entries of
    lists, dicts and small arrays; numbers by value, arrays of the device and objects by identity. Where one has changed the
    step is computed as usual, and captured again; if one changes in every step, that is the reason. What cannot be
    compared is a reason as well, such as an iterator, a clock, a large array on the host, getattr() or an attribute that
    the step sets (surroundings.py). An entry of a list or dict that the step sets and sets back is not noticed. The code of
    minicl, NumPy and CuPy is not looked into: what its functions return, such as len(queue), is read once, at the capture.
    The same holds for what dataclasses.asdict, operator.attrgetter, match on a class or a class's own __str__ read.

    >>> step = capture(np, log=lambda reason: None)(lambda x: 2 * x)
    >>> step(3.0), step.reason
    (6.0, 'NumPy has no CUDA graphs')
    """
    require_bool("capture", enabled=enabled)

    def decorate(step: Callable) -> Callable:
        require_plain_function("capture", getattr(step, "__func__", step))
        for name, argument in inspect.signature(step).parameters.items():
            if argument.kind in (argument.KEYWORD_ONLY, argument.VAR_KEYWORD):
                raise TypeError(f"capture: {step.__name__}() takes {name} only as a keyword; a captured step takes its "
                                "arguments by position")
        return Captured(step, xp, world, log) if enabled else step

    return decorate


class Captured:
    """A step as capture() makes it: called as before. reason: why no step is captured, or None."""

    def __init__(self, step: Callable, xp: ArrayModule, world: World, log: Callable[[str], None]):
        functools.update_wrapper(self, step)
        self.step, self.xp, self.log = step, xp, log
        self.graph: Graph | None = None
        self.last: Computed | None = None                    # the last step that was computed
        self.repeats = False                                 # whether it was of the kind of the one before
        self.changes = 0                                     # how many have followed that were not
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

    def _run(self, inputs, kinds):
        values: list[Sequence[Any]] = []
        reason, is_other = None, False
        if self.graph is not None and kinds == self.graph.kinds and not self.graph.around.changed():
            values, fit = self.graph.next_values(inputs)
            if fit:
                self.changes = 0
                return self.graph.launch(inputs, values)
        changed = self.last and self.last.around.changed()
        if self.last and self.repeats and kinds == self.last.kinds and not changed and not values:
            try:
                self.graph = Graph(self.step, self.xp, self.last, inputs)
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
        return bound.args

    def _kinds(self, inputs):
        """What of the inputs must stay: shape and dtype of an array and where it is, nothing of a float, all of the rest;
        None, and the reason, if one cannot be an input."""
        kinds: list[Any] = []
        for x in inputs:
            if isinstance(x, (float, np.floating)):
                kinds.append(NUMBER)
            elif is_array(x) and x.dtype.kind in "fiub" and x.dtype.itemsize <= 8 and x.dtype.isnative:
                if not x.flags.c_contiguous:
                    self._give_up(f"argument {len(kinds) + 1} is not C-contiguous; pass xp.ascontiguousarray(x)")
                    return None
                kinds.append((x.shape, x.dtype, ON_DEVICE) if isinstance(x, self.xp.ndarray) else kind_of(x, None))
            elif is_array(x):
                self._give_up(f"argument {len(kinds) + 1} is an array of dtype {x.dtype.str}, which the GPU does not have; "
                              "convert it outside, with x.astype()")
                return None
            elif x is None or isinstance(x, (int, str, np.integer, np.bool_)):
                kinds.append(kind_of(x, None))
            else:
                self._give_up(f"its arguments must be arrays, numbers, text or None, got {type(x).__name__}")
                return None
        return kinds

    def _compute(self, inputs, kinds, values, changed):
        """The step as usual; values: what has been computed on the host for it already."""
        before, contents = self.last, _contents(inputs)
        with Step(values, generators=before.around.generators if before else ()) as step:
            result = self.step(*inputs)
        if step.supplied:
            raise RuntimeError("capture: the step drew less than when it was captured; what it does on the host must follow "
                               "from its arguments and from the script's variables")
        if step.draws_itself:
            self._give_up("it draws random numbers itself; draw them outside, and pass them as arguments")
            return result
        changed = changed or before and before.around.changed()
        around = before.around if before and not changed and step.kept.keys() <= before.around.called else \
            Surroundings(self.step, step.kept.values())
        written = [k for k, (x, y) in enumerate(zip(contents, _contents(inputs)), start=1) if x != y]
        if reason := around.reason or written and f"it writes into argument {written[0]}; let it write into a copy" \
                or _kept_on_tape(result):
            self._give_up(reason)
            return result
        self.last = Computed(kinds, [kinds for *_, kinds in step.functions], around)
        self.repeats = bool(before) and not changed and (before.kinds, before.values) == (kinds, self.last.values)
        if self.repeats:
            self.graph = None                                # another kind of step has come to stay
        other = changed or before and before.kinds != kinds and "an argument's shape, or an integer argument"
        self.changes = self.changes + 1 if other else 0
        if self.changes == PATIENCE:
            self._give_up(f"{other} changes from step to step; only arrays and floats may, as arguments")
        return result

    def _give_up(self, reason):
        self.reason, self.graph, self.last = reason, None, None
        self.log(f"the training step is not captured as a CUDA graph: {reason}")


class Computed(NamedTuple):
    """What of a step that was computed must not change: the kinds of its arguments and of the values that its functions
    gave on the host, and what else it reads there."""

    kinds: list[Any]
    values: list[list[Any]]
    around: Surroundings


class CaptureError(RuntimeError):
    """A step could not be captured. values: what it had computed on the host."""

    def __init__(self, message: str, values: list[Sequence[Any]]):
        super().__init__(message)
        self.values = values


def _reason(error, step):
    """What an error says, and at which line of the step."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.name == step.__name__]
    text = " ".join(str(error).split())
    why = next((why for part, why in WHY.items() if part in text), text)
    return f"{step.__name__}(){f', line {lines[-1]}' if lines else ''}: {why}"


class KindError(ValueError):
    """This step is of another kind than the one before, which only its host functions could tell."""


# ---------------------------------------------------------------- one graph

class Graph:
    """What a step launched, and whatever of the host it depends on. first: the host's values for the step captured."""

    def __init__(self, step: Callable, xp: ArrayModule, last: Computed, inputs: Sequence[Any]):
        self.xp, self.kinds, self.around = xp, last.kinds, last.around
        self.places = Places(xp, [*last.kinds, *sum(last.values, [])])
        self.numbers: list[float] = list(inputs)
        self.inputs = [self._place(k, x) for k, x in enumerate(inputs)]
        grads = [(tensor, tensor._grad) for tensor in self.around.tensors]
        with Step(places=self.places) as host:
            try:
                self.graph, self.result = self._captured(step)
                if changed := self.around.changed():
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
        """Input number k for the capture: memory on the device, or a Number, each of which every launch finds filled."""
        if self.kinds[k] == NUMBER:
            return Number(lambda: self.numbers[k])
        return self.xp.empty_like(x) if isinstance(x, self.xp.ndarray) else self.places.put(x, None)

    def _captured(self, step):
        self.pool, stream = self.xp.cuda.MemoryPool(), self.xp.cuda.Stream(non_blocking=True)
        with capturable(self.xp), self.xp.cuda.using_allocator(self.pool.malloc), stream:
            stream.begin_capture()
            try:
                result = step(*self.inputs)
                _each_array(result, lambda x: x)
            except BaseException:
                with contextlib.suppress(Exception):         # it says again what was wrong
                    stream.end_capture()
                raise
            return stream.end_capture(), result

    def next_values(self, inputs: Sequence[Any]) -> tuple[list[Sequence[Any]], bool]:
        """What the host's functions give for the next step, and whether it is of the kinds that were captured. If not, the
        functions after the first that differs have not been called; one that raises an error will again in its place."""
        self.numbers = list(inputs)
        values = []
        with Step() as step:
            for function, dtype, kinds in self.functions:
                try:
                    values.append(step.compute(function))
                except Exception:
                    return values, False
                if [kind_of(value, dtype) for value in values[-1]] != kinds:
                    return values, False
        return values, True

    def launch(self, inputs: Sequence[Any], values: Sequence[Sequence[Any]]) -> Any:
        for place, x in zip(self.inputs, inputs):
            if isinstance(x, self.xp.ndarray):
                place[...] = x
        self.places.fill([*inputs, *(value for entries in values for value in entries)])
        self.graph.launch()
        return _each_array(self.result, lambda x: x.copy())


class Places:
    """Memory on the device for values of the host, one behind the other, so that one copy fills them all.

    kinds: of the values, as kind_of() gives them, in the order in which they will be put there
    """

    def __init__(self, xp: ArrayModule, kinds: Sequence[Any]):
        self.xp, self.kinds = xp, kinds
        sizes = [int(np.prod(kind[0])) * kind[1].itemsize if _is_place(kind) else 0 for kind in kinds]
        ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes])
        self.on_host = np.zeros(ends[-1] if len(ends) else 0, dtype="uint8")
        self.on_device = xp.zeros(len(self.on_host), dtype="uint8")
        starts = [0, *ends[:-1]]
        self.host, self.device = ([memory[start:start + size].view(kind[1]).reshape(kind[0]) if _is_place(kind) else None
                                   for kind, start, size in zip(kinds, starts, sizes)]
                                  for memory in (self.on_host, self.on_device))
        self.count = 0                                       # values that have been put so far

    def put(self, value: Any, dtype: Any) -> Any:
        """The next value as it is for the capture: its place on the device, or itself if it may not change."""
        kind = kind_of(value, dtype)
        while self.count < len(self.kinds) and (self.kinds[self.count] == NUMBER or ON_DEVICE in self.kinds[self.count][2:]):
            self.count += 1
        if self.count == len(self.kinds) or self.kinds[self.count] != kind:
            raise KindError("what it computes on the host is of another kind than without a capture")
        self.count += 1
        return self.device[self.count - 1] if _is_place(kind) else value

    def fill(self, values: Sequence[Any]) -> None:
        for place, value in zip(self.host, values):
            if place is not None:
                place[...] = value
        self.on_device[...] = self.xp.asarray(self.on_host)  # by way of pinned memory that CuPy leaves alone meanwhile


def _is_place(kind):
    return type(kind) is tuple and len(kind) == 2


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
