"""The tape of a loss: each recorded op with its formula, its gradient, and its saved arrays.

    print(minicl.explain(loss, model))            before loss.backward(), which frees the tape
    print(minicl.explain(loss, check=True))       and each gradient against finite differences, at the values it had
    minicl.explain(loss).mermaid()                the same graph as text that GitHub and mermaid.live draw

Formulas are lines of the op's docstring, and those of its module's docstring whose labels, (1), (2), ..., occur in the
op's code.
"""

import copy
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .autograd import Node, Op, Tensor, ancestors
from .backend import array_module, is_array, to_device
from .checks import require_integers
from .gradcheck import GradcheckError, gradcheck
from .nn import Module
from .nn.parts import Stream
from .tensor import owner_of
from .typing import Array


def explain(loss: Tensor, model: Module | None = None, *, check: bool | int = False) -> "Explanation":
    """The tape behind `loss`, an Explanation: print it, or use its .mermaid() graph.

    loss    a Tensor whose backward() has not been called
    model   a Module: leaves get its parameters' names
    check   True, or a number of entries of each input (True: 8): run each op again in float64 and compare its gradient with
            finite differences for a random cotangent. Dropout is drawn again, and running averages do not change.

    Raises TypeError unless loss is a Tensor, ValueError if no op is recorded behind it, RuntimeError for a stale tape.

    >>> x = Tensor(np.ones(3), requires_grad=True)
    >>> [row.op for row in explain((x * 2.0).sum()).rows]
    ['mul', 'sum']
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"explain: loss must be a Tensor, got {type(loss).__name__}")
    if not isinstance(check, bool):
        require_integers("explain", 0, check=check)
    if loss.node is None:
        raise ValueError("explain: no recorded op has produced this Tensor; was it made under no_grad(), detached, "
                         "or computed from inputs without requires_grad? Give the loss itself, not its detach()")
    if loss.node.backward is None:
        raise RuntimeError("explain: backward() has walked and freed this tape; call explain(loss) before loss.backward()")
    nodes = ancestors(loss.node)[::-1]                                      # oldest first
    leaf_names = {id(parameter): name for name, parameter in (model.named_parameters() if model else ())}
    number = {node: k for k, node in enumerate(nodes, start=1)}
    shapes = {loss.node: loss.shape}
    for node in nodes:
        shapes.update((x.node, x.shape) for x in node.inputs if isinstance(x, Tensor) and x.node)
    rows = []
    for node in nodes:
        value, gradient = formulas(node.op)
        rows.append(Row(number[node], node.op.__name__, _inputs(node, number, leaf_names), shapes[node], value,
                        gradient, sum(x.nbytes for x in saved_by(node)), source_line(node.op),
                        _check(node, 8 if check is True else check) if check else None))
    return Explanation(rows, _bytes_held(nodes))


# ---------------------------------------------------------------- the explanation

@dataclass
class Input:
    """An input of a recorded op. `of` is the number of the row that made it, None for a leaf or a constant."""
    name: str
    label: str
    shape: tuple | None
    of: int | None
    key: int = 0                          # tells leaves apart

    def __str__(self):
        return f"{self.name} = {self.label}" + (f" {_shape(self.shape)}" if self.shape is not None else "")


@dataclass
class Row:
    """One recorded op. value, gradient: lines of docstrings; saved: bytes for its backward beside its inputs."""
    number: int
    op: str
    inputs: list[Input]
    shape: tuple
    value: list[str]
    gradient: list[str]
    saved: int
    source: str
    check: str | None


@dataclass(repr=False, eq=False)
class Explanation:
    """rows, oldest first; held: bytes that live until the backward, each array once, parameters and data apart."""
    rows: list[Row]
    held: int

    def __str__(self) -> str:
        n = len(self.rows)
        lines = [f"{n} op{'s' * (n > 1)}: read down for the forward, up for the backward; g is d loss / d (the op's "
                 "output)", ""]
        first: dict[str, int] = {}
        for row in self.rows:
            lines.append("    ".join([f"[{row.number}] {row.op} -> {_shape(row.shape)}", f"saves {_bytes(row.saved)}",
                                      row.source]))
            lines += _block("of", [str(x) for x in row.inputs])
            if row.op in first:
                lines += _block("value", [f"as in [{first[row.op]}]"])
            else:
                first[row.op] = row.number
                lines += _block("value", row.value) + _block("gradient", row.gradient)
            lines += _block("check", row.check.splitlines() if row.check else [])
        return "\n".join([*lines, "", f"held until the backward, each array once, parameters and data apart: "
                                      f"{_bytes(self.held)}"])

    __repr__ = __str__

    def mermaid(self) -> str:
        """The graph in Mermaid's notation: ops are boxes, parameters and data rounded, arrows say the argument."""
        lines = ["flowchart TD"]
        leaves: dict[int, str] = {}
        for row in self.rows:
            numbers = [f"{x.name} = {x.label}" for x in row.inputs if x.shape is None]
            text = "<br/>".join([f"{row.number} {row.op}", *numbers, _shape(row.shape)])
            lines.append(f'    n{row.number}["{_escape(text)}"]')
            for x in (x for x in row.inputs if x.shape is not None):
                origin = f"n{x.of}" if x.of else leaves.get(x.key)
                if origin is None:
                    origin = leaves[x.key] = f"leaf{len(leaves) + 1}"
                    lines.append(f'    {origin}(["{_escape(x.label)}<br/>{_shape(x.shape)}"])')
                lines.append(f'    {origin} -- "{_escape(x.name)}" --> n{row.number}')
        return "\n".join(lines)


def _inputs(node, number, leaf_names):
    shown = []
    for position, x in enumerate(node.inputs):
        name = node.op.checks.input_name(position)
        if isinstance(x, Tensor):
            leaf = leaf_names.get(id(x), "leaf" if x.requires_grad else "constant")
            label = f"[{number[x.node]}]" if x.node else leaf
            shown.append(Input(name, label, x.shape, number.get(x.node), id(x)))
        elif is_array(x):
            shown.append(Input(name, "constant", x.shape, None, id(x)))
        elif x is not None:
            shown.append(Input(name, f"{x:g}", None, None))
    return shown


def _shape(shape):
    return f"({', '.join(map(str, shape))})"


def _bytes(count):
    return f"{count:,} B"


def _block(title, lines):
    wrapped = [part for line in lines for part in textwrap.wrap(line, 100, subsequent_indent="  ")]
    return [f"    {title if k == 0 else '':<9}{line}" for k, line in enumerate(wrapped)]


def _escape(text):
    return text.replace('"', "#quot;")


# ---------------------------------------------------------------- formulas

EXAMPLE = re.compile(r"^ *>>> .*(\n.*\S.*)*", re.MULTILINE)                  # to the next empty line
LABELLED = re.compile(r"^(.*\S) {2,}\((\d+)\)$")
GRADIENT = re.compile(r"d(\(.*?\)|[A-Za-z]\w*(/d\w+)?)(\[.*?\])? *(=|\+=|:|,)|\S+ = d\w/d")


def formulas(op: Op) -> tuple[list[str], list[str]]:
    """(value, gradient): two lists of lines, from the op's docstring and, by label, from its module's.

    From a docstring, without examples, it takes the first line, split at four spaces before the gradient, the indented
    lines, and lines that start like a gradient, `dx = `.
    """
    summary, _, rest = EXAMPLE.sub("", inspect.getdoc(op.forward) or "(no docstring)").partition("\n")
    summary, *tails = re.split(r" {4,}", LABELLED.sub(r"\1", summary))
    value = [summary.removesuffix(".")]
    gradient = []
    labels = _labels_in_code(op.forward)
    labels -= {int(match[2]) for line in rest.splitlines() if (match := LABELLED.match(line))}
    module = (op.forward.__globals__.get("__doc__") or "").splitlines()
    labelled = [line for line in module if (match := LABELLED.match(line)) and int(match[2]) in labels]
    for line in labelled + rest.splitlines():
        equation = re.sub(" {3,}", "   ", line.strip())
        if GRADIENT.match(equation):
            gradient.append(equation if line[0] == " " else equation.partition(": ")[0])
        elif line.startswith("    ") or LABELLED.match(line):
            value.append(equation)
    return value, gradient + [tail for tail in tails if GRADIENT.match(tail)]


def _labels_in_code(function):
    """The labels in comments of a function and of the private functions of its module that it calls."""
    try:
        found = {int(label) for comment in re.findall(r"# (\(\d+\).*)", inspect.getsource(function))
                 for label in re.findall(r"\((\d+)\)", comment)}
    except OSError:                                                          # typed into a session
        return set()
    module = function.__globals__
    for name in function.__code__.co_names:
        if name.startswith("_") and inspect.isfunction(module.get(name)) and module[name] is not function:
            found |= _labels_in_code(module[name])
    return found


def source_line(op: Op) -> str:
    """file:line of the op's def; the file relative to its package's folder."""
    code = op.forward.__code__
    path = Path(code.co_filename)
    line = code.co_firstlineno
    try:
        text = inspect.getsourcelines(op.forward)[0]                             # begins with the decorator
        above = next(k for k, part in enumerate(text) if "def " in part or "lambda" in part)
    except (OSError, StopIteration):
        above = 0
    depth = (op.forward.__module__ or "").count(".") + 1
    return f"{'/'.join(path.parts[-depth:])}:{line + above}"


# ---------------------------------------------------------------- saved arrays

def arrays_held_by(function: Any) -> list[Array]:
    """The arrays that a closure holds: its own, and those of the functions and objects it holds, each once."""
    seen: set[int] = set()
    arrays: dict[int, Array] = {}
    todo = [function]
    while todo:
        thing = todo.pop()
        if is_array(thing):
            arrays.setdefault(_address(thing), owner_of(thing))
            continue
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, (tuple, list)):
            todo.extend(thing)
        elif isinstance(thing, dict):
            todo.extend(thing.values())
        elif getattr(thing, "__closure__", None):
            todo.extend(cell.cell_contents for cell in thing.__closure__)
        elif type(thing).__module__.startswith("minicl"):
            todo.extend(getattr(thing, "__dict__", {}).values())
    return list(arrays.values())


def saved_by(node: Node) -> list[Array]:
    """The arrays that the backward of a recorded op saves: those of its closure, without its inputs."""
    given = {_address(x) for x in node.inputs if isinstance(x, Tensor) or is_array(x)}
    return [x for x in arrays_held_by(node.backward) if _address(x) not in given]


def _bytes_held(nodes):
    """Bytes of all arrays that the tape holds, including values between ops, without leaves and constants."""
    held: dict[int, int] = {}
    leaves = set()
    for node in nodes:
        held.update((_address(x), x.nbytes) for x in arrays_held_by(node.backward))
        for x in node.inputs:
            if isinstance(x, Tensor) and x.node:
                held[_address(x)] = owner_of(x.data).nbytes
            elif isinstance(x, Tensor) or is_array(x):
                leaves.add(_address(x))
    return sum(size for address, size in held.items() if address not in leaves)


def _address(x):
    """The start of an array's or Tensor's memory, the same for all views of it."""
    owner = owner_of(x.data if isinstance(x, Tensor) else x)
    return owner.ctypes.data if isinstance(owner, np.ndarray) else owner.data.ptr


# ---------------------------------------------------------------- finite differences
TOO_LARGE = 1e9       # larger outputs, such as masked scores, are left out: float64 cannot resolve their changes


def _check(node, sample):
    """Gradcheck of one recorded op at its own inputs, in float64: what was found, in words."""
    inputs = [x.data if isinstance(x, Tensor) else x for x in node.inputs]
    inputs = [x.astype("float64") if is_array(x) and x.dtype.kind == "f" else x for x in inputs]
    positions = [k for k, x in enumerate(node.inputs) if isinstance(x, Tensor) and x.requires_grad]

    def again(*moved):
        arguments = list(inputs)
        for position, x in zip(positions, moved):
            arguments[position] = x
        y = node.op(*arguments, **{key: _of_its_own(option) for key, option in node.options.items()})
        return y * (abs(y.data) < TOO_LARGE).astype("float64")

    again.__name__ = node.op.__name__
    names = [node.op.checks.input_name(k) for k in positions]
    moving = [inputs[k] for k in positions]
    largest, rounding = _scale(again, moving)
    for step in (1e-5, 1e-6):                          # the second for strongly curved functions
        atol = max(1e-6 * largest, rounding / step)
        try:
            gradcheck(again, moving, step=step, rtol=1e-4, atol=atol if atol < 1e-6 else 1e-6, names=names, sample=sample,
                      kinks=True)
        except GradcheckError as error:
            failure = str(error)
        else:
            counts = [f"{min(sample, x.size)} of {x.size:,} entries of {name}" for name, x in zip(names, moving)]
            return f"agrees with finite differences at {', '.join(counts)}"
    return failure


def _of_its_own(option):
    """A copy of an op's option, so that a generator starts over, and a layer's averages stay as they are."""
    if isinstance(stream := getattr(option, "__self__", None), Stream):
        return stream.last
    return option if is_array(option) else copy.deepcopy(option)


def _scale(function, inputs):
    """The largest gradient for a random cotangent, since those of a mean are small, and the rounding error of the output."""
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    y = function(*tensors)
    y.backward(to_device(np.random.default_rng(0).standard_normal(y.shape), array_module(y.data)))
    largest = max((float(abs(x.grad).max()) for x in tensors if x.grad is not None and x.size), default=0.0)
    return largest, 2**-50 * float(abs(y.data).sum())
