"""The candidates to compare: minicl and PyTorch, each with its defaults and with settings that may make it faster.

Two allocators are compared. By default glibc returns large freed arrays to the system, and the pages of the next array
are mapped and cleared again, which often takes longer than the arithmetic. minicl's threads() keeps freed arrays until
its block ends, unless keep_memory=False. PyTorch leaves glibc alone; "kept" is PyTorch with an environment in which
glibc keeps them.
"""

import dataclasses
import os

KEPT = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824"}          # bytes


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a case: a library, its allocator, and PyTorch's options.

    The label begins with the library's name; the rest describes the settings.
    """

    label: str
    kept: bool = False
    channels_last: bool = False
    compiled: bool = False
    fused: bool = None                       # a fused optimizer; None is PyTorch's default

    library = property(lambda self: self.label.split(",")[0])

    def runs(self, case, backend):
        """Whether this candidate exists for a case on a backend."""
        if self.library == "minicl":
            return True
        if case.torch is None:
            return False
        return case.compiles if self.compiled else case.layouts or not self.channels_last

    @property
    def options(self):
        """The options of threads() for minicl, of case.Peer for PyTorch."""
        if self.library == "minicl":
            return {"keep_memory": self.kept}
        return {"channels_last": self.channels_last, "compiled": self.compiled, "fused": self.fused}

    def environment(self, threads, precision):
        """This process's environment, with every thread pool limited to `threads`."""
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINICL_THREADS")
        kept = KEPT if self.kept and self.library == "torch" else {}
        return {**os.environ, **dict.fromkeys(pools, str(threads)), **kept,
                "BENCHMARK_PRECISION": precision, "TORCHINDUCTOR_COMPILE_THREADS": "1"}


CANDIDATES = [
    Candidate("minicl", kept=True),
    Candidate("minicl, not kept"),
    Candidate("torch"),
    Candidate("torch, kept", kept=True, fused=True),
    Candidate("torch, channels last, kept", kept=True, channels_last=True, fused=True),
    Candidate("torch, compiled, kept", kept=True, channels_last=True, compiled=True, fused=True),
]
ON_GPU = [
    Candidate("minicl", kept=True),
    Candidate("torch"),
    Candidate("torch, channels last", channels_last=True, fused=True),
    Candidate("torch, compiled", channels_last=True, compiled=True, fused=True),
]
