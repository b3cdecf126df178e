"""Write cupy_listing.json: the public names of the CuPy installed here, and their parameters.

    python tests/cupy_dialect/make_listing.py

needs CuPy but no GPU. Only names and the order of parameters matter, so every default is written None.
A signature is stored as Python writes it, "a, axis=None, out=None", so that the stand-in can let Python
itself refuse the calls that CuPy refuses.
"""

import inspect
import json
import pathlib
import re
import warnings

LISTING = pathlib.Path(__file__).with_name("cupy_listing.json")

# What introspection cannot see:
BY_HAND = {
    "einsum": "*operands, dtype=None, optimize=None",      # declared **kwargs; the docstring names these two
    "meshgrid": "*xi, copy=None, sparse=None, indexing=None",                                       # likewise
    # A generalised ufunc, declared *args.
    "matmul": "a, b, out=None, *, axes=None, axis=None, keepdims=None, casting=None, dtype=None",
}
# These wait for the device through nonzero() or a boolean mask, without saying so in their docstrings.
ALSO_SYNCHRONISE = ["argwhere", "unique_all", "unique_counts", "unique_inverse", "unique_values"]
# Modules that cupy.cuda loads when they are first used, so that whether dir() lists them depends on what ran before.
LATE = {"cublas", "cudnn", "cufft", "curand", "cusolver", "cusparse", "cusparselt", "cutensor", "cutensornet", "jitify", "nccl"}
# The dtypes that ufunc.at accepts with integer ids are limited by CUDA's atomics; the limits are
# written inside compiled code (_routines_indexing.pyx), where nothing can read them.
ATOMIC_DTYPES = {
    "add": "int32 uint32 uint64 float16 float32 float64",
    "sub": "int32 uint32",
    "max": "int32 uint32 uint64 float32 float64",
    "min": "int32 uint32 uint64 float32 float64",
    "and": "int32 uint32 int64 uint64",
    "or": "int32 uint32 int64 uint64",
    "xor": "int32 uint32 int64 uint64",
}


def parameters(thing):
    """The parameters of a function or method as Python writes them, or None if they are unknown."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return compiled_parameters(thing)
    plain = [p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None)
             for p in signature.parameters.values()]
    return str(inspect.Signature(plain))[1:-1]


def compiled_parameters(thing):
    """The parameters in the first line of a docstring, such as `_ndarray_base.sort(self, int axis=-1, kind=None)`."""
    declared = re.match(r"[\w.]+\((.*)\)", thing.__doc__ or "")
    if not declared:
        return None
    plain = []
    for parameter in filter(None, declared[1].split(", ")):
        name, has_default, _ = parameter.partition("=")
        plain.append(name.split()[-1] + ("=None" if has_default else ""))
    return ", ".join(plain)


def public(thing):
    """[(name, value), ...] of the attributes of `thing` without a leading underscore."""
    return [(name, getattr(thing, name)) for name in sorted(dir(thing)) if not name.startswith("_")]


def functions(module):
    """{name: parameters} of the callables of `module`, including classes."""
    return {name: BY_HAND.get(name) or parameters(value) for name, value in public(module) if callable(value)}


def listing():
    """The whole listing as a dictionary, ready for JSON."""
    import cupy
    import numpy

    generator = cupy.random.Generator                      # loaded on first access; dir() lists it from then on
    same = {name for name, value in public(cupy) if value is getattr(numpy, name, public)}
    ufuncs = {name: value for name, value in public(cupy) if isinstance(value, cupy.ufunc)}
    methods = {name: value for name, value in public(cupy.ndarray) if callable(value)}
    waits = re.compile(r"may synchronize( the device)?\.")     # unconditionally; "if ..." does not match
    return {
        "version": cupy.__version__,
        "same as numpy": sorted(same),
        "ufuncs": {name: f"{u.nin} {u.nout} {u._scatter_op or '-'}" for name, u in ufuncs.items()},
        "functions": {name: text for name, text in functions(cupy).items() if name not in same | set(ufuncs)},
        "linalg": functions(cupy.linalg),
        "stride_tricks": functions(cupy.lib.stride_tricks),
        "random": functions(cupy.random),
        "generator": functions(generator),
        "methods": {name: parameters(value) for name, value in methods.items()},
        "attributes": [name for name, _ in public(cupy.ndarray) if name not in methods],
        "operators": sorted(name for name in dir(cupy.ndarray) if name.startswith("__")),
        "synchronises": [name for name, value in public(cupy)
                         if name in ALSO_SYNCHRONISE or waits.search(value.__doc__ or "")],
        "atomic dtypes": ATOMIC_DTYPES,
        "members": {name: [member for member, _ in public(thing) if name != "cuda" or member not in LATE] for name, thing in {
            "cuda": cupy.cuda, "cuda.runtime": cupy.cuda.runtime, "cuda.Device": cupy.cuda.Device,
            "cuda.Stream": cupy.cuda.Stream, "cuda.Event": cupy.cuda.Event,
            "cuda.MemoryPool": cupy.cuda.MemoryPool, "flags": type(cupy.ndarray((), memptr=_nowhere(cupy)).flags),
        }.items()},
    }


def _nowhere(cupy):
    """A pointer to no memory, for an array whose attributes can be read without a GPU."""
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(0, 8, None, device_id=0), 0)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # access to CuPy's deprecated names gives warnings
        found = listing()
    LISTING.write_text(json.dumps(found, indent=0) + "\n")
    print(f"CuPy {found['version']}: {LISTING.name}, {LISTING.stat().st_size / 1000:.0f} kB")
