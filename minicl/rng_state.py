"""The state of a NumPy Generator as JSON, for checkpoints: its bit generator's, and its seed's, which counts rng.spawn()."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checks import require_rng
from .typing import Rng

SEED = ("entropy", "n_children_spawned", "pool_size", "spawn_key")           # the arguments of a SeedSequence


def require_storable(where: str, rng: Any) -> None:
    """Raise TypeError unless rng is a numpy Generator whose state a checkpoint can hold."""
    require_rng(where, rng)
    try:
        json.dumps(rng.bit_generator.state)
    except TypeError:
        raise TypeError(f"{where}: rng must be of PCG64, as np.random.default_rng(seed) is; a checkpoint cannot hold the "
                        f"state of {type(rng.bit_generator).__name__}") from None


def rng_state(rng: Rng) -> dict[str, Any]:
    """The state of rng, for load_rng_state(). "seed" is left out if its seed is no SeedSequence."""
    seed = rng.bit_generator.seed_seq
    if not isinstance(seed, np.random.SeedSequence):
        return dict(rng.bit_generator.state)
    values = {key: np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else value
              for key, value in sorted(seed.state.items())}
    return {**rng.bit_generator.state, "seed": json.loads(json.dumps(values, default=int))}


def require_rng_state(rng: Rng, state: Mapping[str, Any]) -> None:
    """Raise TypeError, ValueError, KeyError or OverflowError unless rng could be in this state. It is not changed."""
    own = {key: value for key, value in state.items() if key != "seed"}
    other = type(rng.bit_generator)()
    other.state = own                                        # accepts 3.5 for 3
    if json.dumps(other.state, default=str) != json.dumps(own, default=str) or own.get("has_uint32", 0) not in (0, 1):
        raise ValueError("its state has a number that no generator can have")
    if "seed" in state:
        if sorted(state["seed"]) != sorted(SEED) or state["seed"]["pool_size"] not in range(4, 1000):
            raise ValueError("its seed is not that of a SeedSequence")
        np.random.SeedSequence(**state["seed"])              # raises, too


def load_rng_state(rng: Rng, state: Mapping[str, Any]) -> None:
    """Put rng into a state that require_rng_state() accepts. Its seed then counts the children of rng.spawn() as before; one
    of another seed, as without --seed, is replaced."""
    seed, now = state.get("seed", {}), rng_state(rng).get("seed", {})
    more = seed.get("n_children_spawned", 0) - now.get("n_children_spawned", 0)
    if 0 <= more < 10**6 and {**now, "n_children_spawned": 0} == {**seed, "n_children_spawned": 0}:
        for _ in range(more):
            rng.bit_generator.seed_seq.spawn(1)              # type: ignore[attr-defined]
    elif seed:
        rng.bit_generator.__setstate__((rng.bit_generator.state, np.random.SeedSequence(**seed)))    # type: ignore
    rng.bit_generator.state = {key: value for key, value in state.items() if key != "seed"}
