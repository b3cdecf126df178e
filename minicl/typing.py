"""Types for annotations. An array is NumPy's or CuPy's; CuPy may be missing, so its type is not named here."""

from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any                # numpy.ndarray or cupy.ndarray
HostArray: TypeAlias = npt.NDArray[Any]
ArrayModule: TypeAlias = ModuleType   # numpy or cupy
DType: TypeAlias = npt.DTypeLike
if TYPE_CHECKING:
    Rng: TypeAlias = np.random.Generator
else:
    Rng = Any                         # avoids importing numpy.random, a third of minicl's import time
