"""Data sets by the names of --data: load_images, load_colour_images.

"auto" is the published data set if available, else a generated one, which needs no network.
"""

from collections.abc import Callable
from os import PathLike

from . import cifar10, digits, mnist, shapes
from .checks import DataError
from .download import Unavailable
from .images import ImageData


def load_images(name: str = "auto", data_dir: str | PathLike | None = None, *, seed: int = 0,
                log: Callable[[str], None] = print) -> ImageData:
    """Handwritten digits: the ImageData called `name`, grey images (28, 28, 1).

    name       "mnist", "digits" (generated from `seed`), or "auto": MNIST from data_dir, else from the
               user's cache, else downloaded, else, on a machine without network, generated digits
    data_dir   the folder with MNIST's files; if given, they must be there
    log        gets a line of text that reports a fallback

    Raises DataError (a ValueError) for an unknown name or a data_dir that would not be read, and the errors of load_mnist:
    a damaged file in data_dir or in the cache (CorruptFile) is never replaced by generated digits.
    """
    return _load("load_images", name, data_dir, seed, log, published=("mnist", mnist.load_mnist),
                 generated=("digits", digits.generate_digits))


def load_colour_images(name: str = "auto", data_dir: str | PathLike | None = None, *, seed: int = 0,
                       log: Callable[[str], None] = print) -> ImageData:
    """Colour images (32, 32, 3), as load_images for digits: "cifar10", "shapes" (generated), or "auto"."""
    return _load("load_colour_images", name, data_dir, seed, log, published=("cifar10", cifar10.load_cifar10),
                 generated=("shapes", shapes.generate_shapes))


def _load(function, name, data_dir, seed, log, *, published, generated):
    """The data set `name`; published and generated: their names, and the functions that load or generate them."""
    published, load = published
    generated, generate = generated
    if name not in ("auto", published, generated):
        raise DataError(f"{function}: name must be 'auto', {published!r} or {generated!r}, got {name!r}")
    if name == generated:
        if data_dir is not None:
            raise DataError(f"{function}: generated {generated} read no files, got data_dir {str(data_dir)!r}; leave it "
                            f"out, or ask for {published!r}")
        return generate(seed=seed)
    try:
        return load(data_dir, log=log)
    except Unavailable as error:
        if name == published:
            raise
        log(f"{error.reason}: continuing with generated {generated}; --data-dir FOLDER reads the published files")
        return generate(seed=seed)
