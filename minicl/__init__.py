"""minicl: contrastive learning from scratch, every gradient on the page.

    backend      NumPy or CuPy           autograd     Tensor, @op, the tape
    ops          differentiable ops      contrastive  cosine, temperature softmax, InfoNCE, NT-Xent
    nn, optim    models and optimizers   data         MNIST, generated digits, augmentations
    evaluate     kNN, linear probe, geometry, the information bound
    gradcheck    finite differences      explain      the tape op by op; push and pull of a contrastive loss
    methods      SimCLR, MoCo, CLIP...   run          what the training scripts share
    load         a trained model, from a run's folder
    capture      a training step as one CUDA graph
    check_inputs finds writes into arrays between forward and backward

`import minicl` is enough: minicl.nn, minicl.data and the other packages are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import ops
from .autograd import Tensor, op
from .backend import BackendError, get_backend
from .check_inputs import check_inputs
from .explain import explain
from .explain_pairs import explain_pairs
from .gradcheck import GradcheckError, gradcheck
from .no_grad import no_grad
from .signature import Index, Mask, Scalar

if TYPE_CHECKING:
    from . import contrastive, data, evaluate, methods, nn, optim
    from .cuda_graph import capture
    from .trained import load

__version__ = "0.1.0"
__all__ = ["BackendError", "GradcheckError", "Index", "Mask", "Scalar", "Tensor", "capture", "check_inputs",
           "contrastive", "data", "evaluate", "explain", "explain_pairs", "get_backend", "gradcheck", "load", "methods",
           "nn", "no_grad", "op", "ops", "optim"]


def __getattr__(name: str) -> Any:
    if name in ("capture", "load"):
        return getattr(importlib.import_module(f"{__name__}.{'trained' if name == 'load' else 'cuda_graph'}"), name)
    if name in __all__:                                      # a package that is not imported yet
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
