"""Metrics of measured rounds: ratios with their noise, floors, and whether the targets are met."""

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measured quantity, its noise as a share of it (None for a single measurement), and its upper target."""

    value: float
    noise: float = None
    target: float = None

    @property
    def met(self):
        return None if self.target is None else self.value <= self.target

    def __str__(self):
        text = f"{self.value:.2f}" if self.noise is None else f"{self.value:.2f} ± {self.value * self.noise:.2f}"
        return text if self.target is None else f"{text} {'✓' if self.met else '✗'} ≤ {self.target:g}"


def metrics(case, result):
    """{kind: Metric} of what was measured; the kinds are those of case.Target:

    default  minicl over PyTorch, both with their defaults
    best     the fastest of minicl's candidates over the fastest of PyTorch's
    memory   minicl's peak over PyTorch's, both with their defaults
    floor    minicl with its defaults over the case's floor
    seconds  minicl with its defaults
    """
    rounds = result["rounds"]
    peak = result["peak"]
    found = {}
    ours, theirs = fastest(result, "minicl"), fastest(result, "torch")
    if "minicl" in rounds and "torch" in rounds:
        found["default"] = ratio(rounds["minicl"], rounds["torch"])
        if peak["minicl"] is not None and peak["torch"]:
            found["memory"] = peak["minicl"] / peak["torch"], None
    if ours and theirs:
        found["best"] = ratio(rounds[ours], rounds[theirs])
    if "minicl" in rounds:
        floor, _ = case.work().floor(result["rates"])
        found["seconds"] = statistics.median(rounds["minicl"]), spread(rounds["minicl"])
        if floor:
            found["floor"] = found["seconds"][0] / floor, found["seconds"][1]
    return {kind: Metric(value, noise, getattr(case.target, kind)) for kind, (value, noise) in found.items()}


def ratio(times, reference):
    """(the median of the round-by-round ratios, their spread)."""
    ratios = [a / b for a, b in zip(times, reference)]
    return statistics.median(ratios), spread(ratios)


def spread(values):
    """Half the distance from the 10th to the 90th percentile, as a share of the median."""
    if len(values) < 2:
        return 0.0
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return (tenths[-1] - tenths[0]) / 2 / statistics.median(values)


def fastest(result, library):
    """The label of the library's candidate with the smallest median, or None."""
    labels = [label for label in result["rounds"] if label.split(",")[0] == library]
    return min(labels, key=lambda label: statistics.median(result["rounds"][label]), default=None)


# ---------------------------------------------------------------- regressions

KINDS = ("default", "best", "floor")             # what a baseline stores; floor only counts without a peer


def baseline_of(found):
    """{kind: [value, noise]} of a case's metrics, for the baseline."""
    return {kind: [round(found[kind].value, 4), round(found[kind].noise, 4)] for kind in KINDS if kind in found}


def compared_kinds(found, baseline):
    """The metrics of a case that both runs have: those relative to a peer, else the one relative to the machine's floor."""
    common = [kind for kind in KINDS if kind in found and kind in baseline]
    return [kind for kind in common if kind != "floor" or common == ["floor"]]


def regressions(found, baseline):
    """[message, ...] for the compared metrics of a case that exceed the baseline by more than the noise of both runs."""
    messages = []
    for kind in compared_kinds(found, baseline):
        value = found[kind].value
        noise = found[kind].noise
        before, noise_before = baseline[kind]
        if value > before * (1 + noise + noise_before):
            messages.append(f"{kind}: {value:.2f}, was {before:.2f}: {value / before - 1:+.0%}, where the noise is "
                            f"{noise + noise_before:.0%}")
    return messages
