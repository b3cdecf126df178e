"""What a step reads on the host is noted, whoever reads it, and only that; watching it leaves no trace."""

import sys
import threading
import types

import host_reads
import numpy as np
import pytest
from host_reads import FOLLOWED, HARMLESS, REFUSED, Plain, Tau

from minicl.backend import Step, each_step
from minicl.watch import Watch


def watched(step):
    """The Watch of a run of the step, after one that is not watched, as in a capture."""
    step()
    with Step() as host, Watch(step, host) as guards:
        step()
    return guards, host


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_read_is_compared(name, monkeypatch):
    host_reads.reset(monkeypatch)
    read, change = FOLLOWED[name]()
    before, (guards, _) = read(), watched(read)
    again, _ = watched(read)
    assert guards.reason is None and guards.changed() is None and guards.path == again.path
    change((lambda: 3.0) if name == "function in a dict" else 3.0)
    assert read() != before or name == "sign of zero"
    assert guards.changed()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_read_may_change(name, monkeypatch):
    host_reads.reset(monkeypatch)
    read, happen = HARMLESS[name]()
    before, (guards, _) = read(), watched(read)
    happen()
    assert guards.reason is None and guards.changed() is None and read() == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_a_reason(name, monkeypatch):
    host_reads.reset(monkeypatch)
    make, owner, reason = REFUSED[name]
    guards, host = watched(make(owner))
    assert reason in (guards.reason or f"{guards.changed()} changes, or {'random' * host.draws_itself}")


def test_only_instructions_that_are_executed_count():
    owner, tau, debug = Plain(), 1.0, False

    def read():
        if debug:
            print(tau)
        return owner.tau

    guards, _ = watched(read)
    tau = 2.0
    assert guards.reason is None and guards.changed() is None
    debug = True
    assert guards.changed() == "debug"


def test_another_path_has_another_hash():
    values = [1.0]

    def read():
        return 1.0 if values[0] > 0 else 2.0

    guards, _ = watched(read)
    values[0] = -1.0
    assert watched(read)[0].path != guards.path and guards.changed() == "values"


def test_what_a_library_imports_late_is_not_the_steps(tmp_path, monkeypatch):
    (tmp_path / "late_part.py").write_text("import os\nTAU = sum(float(k) for k in [1, 2])\nos.fspath('.')\n")
    library = types.ModuleType("numpy.late")
    exec("def load():\n    import late_part\n    return late_part.TAU", vars(library))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "late_part", raising=False)
    guards = []
    for _ in range(2):
        with Step() as host, Watch(lambda: library.load() + 1, host) as watch:
            assert library.load() + 1 == 4.0
        guards.append(watch)
    assert [watch.reason for watch in guards] == [None, None] and guards[0].path == guards[1].path


def test_no_hook_is_left_even_by_an_error():
    def fails():
        Plain().tau = 2.0
        raise ValueError(Tau.shared, owner.tau, sys.path)

    def trace(*arguments):
        return None

    owner, before = Plain(), {kind: dict(vars(kind)) for kind in (Plain, Tau)}
    debugger = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(ValueError), Step() as host, Watch(fails, host):
            fails()
        assert sys.gettrace() is trace
    finally:
        sys.settrace(debugger)
    assert {kind: dict(vars(kind)) for kind in (Plain, Tau)} == before and type(sys) is type(threading)


def test_other_threads_are_not_watched_and_read_the_same():
    owner, other, done, right = Plain(), Plain(7.0), threading.Event(), []

    def elsewhere():
        while not done.is_set():
            right.append(other.tau == 7.0 and other.get_tau() == 7.0)

    def read():
        return sum(owner.tau for _ in range(2000))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        guards, _ = watched(read)
    finally:
        done.set()
        thread.join()
    other.tau = 8.0
    assert all(right) and guards.reason is None and guards.changed() is None


def test_what_the_host_computes_again_is_not_compared_but_may_not_be_read():
    x, owner = np.zeros(1), Plain()

    def count():
        owner.tau += 1
        return [owner.tau]

    guards, _ = watched(lambda: each_step(x, count)[0])
    count()
    assert guards.reason is None and guards.changed() is None
    guards, _ = watched(lambda: owner.get_tau() * each_step(x, count)[0] * owner.tau)
    assert "owner.tau, which changes on the host" in guards.reason


def test_what_is_read_after_the_host_has_computed_is_compared_then():
    x, owner, values = np.zeros(1), Plain(), [1.0]

    def count():
        owner.tau += 1
        values[0] += 1
        return [1.0]

    guards, _ = watched(lambda: each_step(x, count)[0] * owner.tau)
    assert guards.reason is None and guards.changed(0) is None and guards.changed(1) is None
    count()                                                  # as before a launch
    assert guards.changed(0) is None and guards.changed(1) == "owner.tau"
    guards, _ = watched(lambda: each_step(x, count)[0] * values[0])
    count()
    assert guards.changed(1) == "values"
