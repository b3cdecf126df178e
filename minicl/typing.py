"""Types of the public surface. An array is NumPy's or CuPy's; CuPy need not be installed, so its type has no name here."""

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
    Rng = Any                         # naming it would import numpy.random, a third of minicl's own time to import
