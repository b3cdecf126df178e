"""Counts and records of the operations of the emulated GPU.

    before = counts(); step(); after = counts()
    with recorded() as operations: step()
        [("kernel", "add", blocks, threads, entries), ("product", m, n, k, count), ...]; entries are those that a reduction
        reads, 0 for other kernels; "bf16_product" for operands of bfloat16
    with not_computing(): step()            the device does nothing, to time the host
"""

import contextlib
import ctypes


class _Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("launches", "products", "device_copies", "to_host", "to_device",
                                                   "synchronisations", "allocations", "graph_launches")]


def _library():
    return ctypes.CDLL(None)                            # boot.load() has opened it globally


def is_there():
    """Whether boot.load() has put the emulated GPU into this process."""
    return hasattr(_library(), "host_counts")


def counts():
    """{operation: count so far}; device_copies are copies and fills within the device's memory."""
    found = _Counts()
    _library().host_counts(ctypes.byref(found))
    return {name: getattr(found, name) for name, _ in _Counts._fields_}


def counted(action):
    """{operation: count} of action()."""
    before = counts()
    action()
    return {name: after - before[name] for name, after in counts().items()}


def submissions():
    """The number of operations handed to the device: kernels, products, copies and graphs. Each takes host time."""
    found = counts()
    return sum(found[name] for name in ("launches", "products", "device_copies", "to_host", "to_device", "graph_launches"))


def synchronisations():
    """How often the host has waited for the device."""
    return counts()["synchronisations"]


@contextlib.contextmanager
def recorded():
    """A list, to which the block's operations are added when it ends."""
    library = _library()
    operations = []
    library.host_recorded.restype = ctypes.c_void_p
    library.host_record()
    try:
        yield operations
    finally:
        text = library.host_recorded()
        for line in ctypes.string_at(text).decode().splitlines():
            kind, *rest = line.split()
            operations.append((kind, *(int(part) if part.isdigit() else part for part in rest)))
        library.free(ctypes.c_void_p(text))


@contextlib.contextmanager
def not_computing():
    """Within this block the device counts operations but runs none, so arrays hold arbitrary values."""
    _library().host_compute(0)
    try:
        yield
    finally:
        _library().host_compute(1)
