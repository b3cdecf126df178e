"""Watching what a step reads on the host while it runs.

    with Watch(step, host) as guards:         # host: the Step that runs, see backend/steps.py
        step()
    guards.reason, guards.path, guards.changed()

In this thread, and only while the step runs,

    instructions   sys.settrace shows each instruction of the step's code, in whatever file: the variables that it loads,
                   and what it sets. The code of minicl, NumPy and CuPy is not shown, nor what minicl computes on the host
                   again for each launch. path is a hash of the instructions that were executed in the user's files
    attributes     the class of each object that the step reaches has a __getattribute__ that notes the names. So config.tau
                   is noted whoever reads it: the step, minicl, dataclasses.asdict, match, an f-string

What was there before the step can only be had from a variable, or from what was there before: so all of it is reached, and
what was not reached has been made by the step, which may change it.
"""

import dis
import functools
import gc
import sys
import types
from collections.abc import Callable
from sys import _getframe as caller
from threading import get_ident
from typing import Any

import numpy as np

from .backend import Step
from .guards import HOOKS, Guards
from .kinds import SAFE, TRUSTED, contents, is_library, is_of_python, own_bases, root

SEEDED = {"bit_generator", "spawn", "jumped"}                # attributes that make one random generator from another
HIDDEN = {f"__{name}__" for name in "get subclasses globals closure builtins".split()}     # attributes of what has no hooks
COMPARE = {"COMPARE_OP", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONTAINS_OP", "MATCH_CLASS",
           "BINARY_MODULO"}
CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}


class Watch(Guards):
    """See above."""

    def __init__(self, step: Callable, host: Step):
        super().__init__(host)
        self._step = step
        self._noted: set[Any] = set()                        # variables that were read
        self._made: set[Any] = set()                         # code of functions that the step makes
        self._hooked: dict[type, bool] = {}                  # and whether they have a __getattribute__ of their own
        self._undo: list[Callable[[], Any]] = []
        self._sets: str | None = None                        # an attribute is being set, perhaps of a new object
        self._busy = False                                   # what is read now is not read by the step

    def __enter__(self) -> "Watch":
        self._thread, self._before, self._collects = get_ident(), sys.gettrace(), gc.isenabled()
        self.reach("self", getattr(self._step, "__self__", None))
        self.reach(getattr(self._step, "__name__", type(self._step).__name__), self._step)
        gc.disable()                                         # it may call functions that are not the step's
        caller().f_trace_opcodes = True                      # Python 3.12 looks for this in settrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: Any) -> None:
        self._busy = True
        sys.settrace(self._before)
        if self._collects:
            gc.enable()
        for undo in reversed(self._undo):
            undo()
        self.refuse(self._sets)
        self.reason = self.host.refused or self.reason
        self.settle()
        self._step = self._undo = None                       # type: ignore[assignment]

    # ------------------------------------------------------------ instructions

    def _call(self, frame, event, arg):
        """Called with each function: which of its instructions are shown."""
        module, code = str(frame.f_globals.get("__name__", "")), frame.f_code
        if self._busy or self.reason or self.host.is_computing:
            return None
        self._busy = True
        if module in ("importlib._bootstrap", "_frozen_importlib") and code.co_name == "_find_and_load":
            frame.f_trace_lines = False
            return self._import                              # by a library, such as NumPy's parts that it loads late
        if root(module) == __package__ and module not in (__name__, Guards.__module__):
            self._passes(frame)
        if root(module) in TRUSTED or is_library(module) and code not in self.functions and code not in self._made:
            self._busy = False
            return None                                      # called by a library
        self._made.update(inner for inner in code.co_consts if isinstance(inner, types.CodeType))
        if code.co_argcount:                                 # special methods, such as __call__, which nothing names
            kind = type(frame.f_locals.get(code.co_varnames[0]))
            for name in {name for base in own_bases(kind) for name, value in vars(base).items() if name.startswith("__")
                         and (name == code.co_name or type(value) is types.FunctionType and value.__code__ is code)}:
                self.class_entry(kind, name)
        if module == "copy" and any(isinstance(x, np.random.Generator) for x in frame.f_locals.values()):
            self.refuse(f"it copies a random generator with copy.{code.co_name}()")
        if code.co_freevars and code not in self.functions and code not in self._made:
            for function in gc.get_referrers(code):          # called by something that cannot be watched
                if isinstance(function, types.FunctionType):
                    self.reach(code.co_name, function)
        self._busy = False
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._instruction

    def _import(self, frame, event, arg):
        """What runs until a module is found is not the step's."""
        self._busy = event != "return"
        return self._import

    def _passes(self, frame):
        """A function of minicl is called."""
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        kind = first if issubclass(type(first), type) else type(first)
        if (code, kind) not in self._noted:
            self._noted.add((code, kind))
            self.passes(code, frame.f_globals, kind)

    def _instruction(self, frame, event, arg):
        if event == "opcode" and not self._busy and not self.reason:
            self.refuse(self._sets)
            self._busy, self._sets = True, None
            if not is_library(frame.f_globals.get("__name__")):              # which CuPy may call, too, to compile a kernel
                self.path = hash((self.path, id(frame.f_code), frame.f_lasti))
            look, name = _instructions(frame.f_code).get(frame.f_lasti, (None, None))
            if look is not None:
                look(self, frame, name)
            self._busy = False
        return self._instruction

    def _variable(self, frame, name):
        names = frame.f_globals
        if (id(names), name) not in self._noted and name not in frame.f_locals:        # those of a class that is being made
            self._noted.add((id(names), name))
            self.variable(names, frame.f_builtins, name)

    def _free_variable(self, frame, name):
        for function in self.functions.get(frame.f_code, ()):
            cell = function.__closure__[frame.f_code.co_freevars.index(name)]
            if id(cell) not in self._noted:
                self._noted.add(id(cell))
                self.follow(name, functools.partial(contents, cell))

    def _attribute(self, frame, name):
        code = frame.f_code
        if name in SEEDED:
            self._refuse_at(frame, f"takes random numbers, or a generator, from .{name}; make the generator outside, or "
                                   "pass the numbers as arguments")
        elif root(frame.f_globals.get("__name__")) not in SAFE \
                and (name in HIDDEN or name in HOOKS and code.co_name not in CONSTRUCTORS | HOOKS):
            self._refuse_at(frame, f"takes .{name}, so that it is not seen what it reads or sets")
        self.named(name)
        if "__class__" in code.co_freevars and code.co_argcount:             # perhaps super().name
            first = frame.f_locals.get(code.co_varnames[0])
            self.class_entry(first if isinstance(first, type) else type(first), name)

    def _compares(self, frame, name):
        self.open(types.SimpleNamespace, later=False)

    def _sets_attribute(self, frame, name):
        if root(frame.f_globals.get("__name__")) not in SAFE:
            self._sets = self._at(frame, f"sets {name}, which would happen once only")

    def _sets_variable(self, frame, name):
        self._refuse_at(frame, f"sets the variable {name}, which would happen once only")

    def _imports(self, frame, name):
        self._refuse_at(frame, f"imports {name}; import it at the top of the file")

    def _refuse_at(self, frame, problem):
        self.refuse(self._at(frame, problem))

    def _at(self, frame, problem):
        functions = self.functions.get(frame.f_code)
        name = functions[0].__qualname__.rpartition("<locals>.")[2] if functions else frame.f_code.co_name
        return f"{name}(), line {frame.f_lineno}: it {problem}"

    # ------------------------------------------------------------ attributes

    def hook(self, kind: type) -> bool:
        if kind in self._hooked or not is_of_python(kind):
            return kind in self._hooked
        own = [vars(base).get("__getattribute__") for base in kind.__mro__ if base not in self._hooked]
        self._hooked[kind] = any(self._hooked.get(base) for base in kind.__mro__) \
            or any(isinstance(function, types.FunctionType) for function in own)
        for name, hook in (("__getattribute__", _reading), ("__setattr__", _setting), ("__delattr__", _setting)):
            self._undo.append(functools.partial(type.__setattr__, kind, name, vars(kind)[name]) if name in vars(kind) else
                              functools.partial(type.__delattr__, kind, name))
            type.__setattr__(kind, name, hook(self, getattr(kind, name)))
        if type(kind) is type:                               # so that its own attributes cannot be watched
            self.hold(kind.__name__, kind)
        return True

    def hook_module(self, module: types.ModuleType) -> None:
        if type(module) is types.ModuleType:                 # which cannot be changed, as a class of Python can
            self._undo.append(functools.partial(setattr, module, "__class__", types.ModuleType))
            module.__class__ = type("module", (types.ModuleType,), {
                "__getattribute__": _reading(self, types.ModuleType.__getattribute__)})
        else:
            self.hook(type(module))

    def reads_by_itself(self, kind: type) -> bool:
        return self._hooked.get(kind, False)

    def on_read(self, owner: Any, name: str) -> None:
        if self._busy or get_ident() != self._thread or self.host.is_computing or name == "__class__":
            return
        self._busy = True
        try:
            if not (issubclass(type(owner), types.ModuleType) and root(caller(2).f_globals.get("__name__")) in TRUSTED):
                self.attribute(owner, name)
            if issubclass(type(owner), type):                      # whose class is not type
                self.class_entry(type(owner), name)
        finally:
            self._busy = False

    def on_set(self, owner: Any, name: str) -> None:
        if get_ident() == self._thread and self.is_new(owner):
            self._sets = None
        elif get_ident() == self._thread and self.host.is_computing:
            self._computed.add((id(owner), name))


def _reading(watch, original):
    def __getattribute__(self, name):
        watch.on_read(self, name)
        return original(self, name)
    return __getattribute__


def _setting(watch, original):
    def set_or_delete(self, name, *value):
        watch.on_set(self, name)
        original(self, name, *value)
    return set_or_delete


@functools.lru_cache(1000)
def _instructions(code):
    """{offset: (how to look at the instruction there, its name)} of a function's code."""
    looks, extended, before = {}, [], None
    for step in dis.get_instructions(code):
        look, name = None, step.argval
        if step.opname == "EXTENDED_ARG":                    # what follows it is not shown by itself
            extended.append(step.offset)
            continue
        if step.opname.endswith(("DEREF", "CLOSURE")) or step.opname.startswith("LOAD_FAST"):
            if name in code.co_freevars:
                look = Watch._free_variable if step.opname.startswith("LOAD") else Watch._sets_variable
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            look = Watch._sets_variable
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            look = Watch._variable
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER", "IMPORT_FROM")):
            look = Watch._attribute
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            owner = before.argval if before is not None and before.opname.startswith("LOAD") else ""
            look, name = Watch._sets_attribute, f"{owner if isinstance(owner, str) else ''}.{name}"
        elif step.opname == "IMPORT_NAME":
            look = Watch._imports
        elif step.opname in COMPARE or step.opname == "BINARY_OP" and "%" in step.argrepr:
            look = Watch._compares
        looks |= dict.fromkeys((*extended, step.offset), (look, name))
        extended, before = [], step
    return looks
