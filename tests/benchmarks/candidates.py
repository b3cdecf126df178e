"""What is compared: minicl and PyTorch, each as it runs by default and in the ways that may make it faster.

Two allocators. Left alone, glibc gives large freed arrays back to the system, and the next one's pages are mapped and
cleared again: often more work than the arithmetic. minicl's threads() keeps them while the loop lasts, unless told not
to; PyTorch leaves glibc alone, and "kept" is PyTorch with an environment that tells glibc to keep them.
"""

import dataclasses
import os

KEPT = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824"}          # bytes


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a case: a library, its allocator, and what more PyTorch is asked for.

    The label begins with the library's name; what follows says how it is run.
    """

    label: str
    kept: bool = False
    channels_last: bool = False
    compiled: bool = False
    fused: bool = None                       # the optimizer; None is PyTorch's own choice

    library = property(lambda self: self.label.split(",")[0])

    def runs(self, case, backend):
        """Whether there is such a candidate for this case."""
        if self.library == "minicl":
            return True
        if case.torch is None:
            return False
        return case.compiles if self.compiled else case.layouts or not self.channels_last

    @property
    def options(self):
        """Of threads(), or of case.Peer."""
        if self.library == "minicl":
            return {"keep_memory": self.kept}
        return {"channels_last": self.channels_last, "compiled": self.compiled, "fused": self.fused}

    def environment(self, threads, precision):
        """The process's own, with every thread pool limited to `threads`."""
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
