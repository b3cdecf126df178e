"""The claims: a fast form of each, the committed records and pages, and the command that runs them."""

import contextlib
import functools
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from captioned_digits import WORDS
from claims import NAMES, __main__, counting, infonce_bound, laboratory, leak, tightness, zero_shot
from claims.answers import count
from claims.infonce_bound import _exact_bound, exact_bound
from claims.laboratory import (NOT_REPRODUCED, VERDICTS, Setting, all_claims, experiment, mean_std, read_records,
                               record_path)
from claims.report import pages

import minicl
from known_information import optimal_bound, symbol_estimates
from minicl import viz
from minicl.data import Unavailable
from minicl.folder import FolderLock
from minicl.run import RunError, command

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS = read_records(DOCS / "claims")
each_claim = pytest.mark.parametrize("module", all_claims(), ids=lambda module: module.CLAIM.name)
each_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)


def silent(text):
    pass


# ---------------------------------------------------------------- every claim

DIRECTIONS = {               # for claims whose verdict is in doubt: what the fast form shows
    "queue_size": lambda metrics: 0.5 < metrics["exponent"] < 1.6,  # the cost is linear in the length of the queue
    "leak": lambda metrics: leak.lost(metrics)[0] > 0,                                  # the loss falls
}
ATTEMPTS = {"batch_size": 3, "queue_size": 3}    # they also measure times, which a busy machine may disturb


def shows_it(record):
    claim = laboratory.load_claim(record.name).CLAIM
    return DIRECTIONS[record.name](record.arrays) if claim.doubt else record.verdict != NOT_REPRODUCED


@each_claim
def test_the_fast_form_shows_what_the_claim_states(module, tmp_path):
    for _ in range(ATTEMPTS.get(module.CLAIM.name, 1)):
        record = experiment(module, [0], size="fast", log=silent, cpu_threads=1)
        if shows_it(record):
            break
    assert shows_it(record), record.reason
    assert all(isinstance(cell, str) for row in record.rows() for cell in row)
    record.save(tmp_path)
    assert read_records(tmp_path) == {record.name: record}
    if viz.Figure is not None:
        assert record_path(tmp_path, record.name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@each_claim
def test_a_claim_has_all_its_parts(module):
    claim = module.CLAIM
    assert NAMES[claim.number - 1] == claim.name == module.__name__.rpartition(".")[2]
    assert all((claim.title, claim.statement, claim.mathematics, claim.source, claim.next))
    assert not claim.title.endswith(".") and claim.statement.endswith(".") and "\n" not in claim.title + claim.statement


def test_the_same_seed_gives_the_same_metrics_on_either_backend(xp):
    first, again = (experiment(tightness, [1], size="fast", xp=xp, log=silent, cpu_threads=1) for _ in range(2))
    assert first.metrics == again.metrics and first.verdict == again.verdict != NOT_REPRODUCED


def test_learned_critics_run_on_either_backend(xp, rng):
    setting = Setting(0, "fast", xp, print=silent)
    assert len(counting.saturate(setting, steps=2, draws=1)) == len(counting.BATCHES)
    assert infonce_bound.learn(setting, rng, steps=2, lr=1e-3, K=8).shape == (2 * len(infonce_bound.NATS),)


# ---------------------------------------------------------------- committed records and pages

@each_record
def test_a_committed_record_has_the_verdict_that_the_claim_gives_now(record):
    module = laboratory.load_claim(record.name)
    assert module.verdict(record.arrays) == (record.verdict, record.reason)
    assert (record.claim, record.size, record.seeds) == (module.CLAIM.number, "default", list(module.CLAIM.seeds))
    assert record_path(DOCS / "claims", record.name).with_suffix(".png").exists()


def test_the_pages_equal_the_output_of_the_report_command():
    made = pages(RECORDS, DOCS / "claims", DOCS / "claims.md")
    assert set(made) == {DOCS / "claims.md", *(DOCS / "claims").glob("*.md")}
    assert [path.name for path, text in made.items() if path.read_text() != text] == [], "python examples/claims report --docs"


def test_a_page_states_the_length_of_each_training():
    record = replace(RECORDS["head"], trained=[[400, 256, 10_000], [1200, 256, 10_000]])
    made = pages({record.name: record}, DOCS / "claims", DOCS / "claims.md")
    text = " ".join(made[record_path(DOCS / "claims", record.name).with_suffix(".md")].split())
    assert "Each training: 400 steps of 256 from 10,000 examples or 1,200 steps of 256 from 10,000 examples." in text


@pytest.mark.parametrize("name", ["claims.md", *(f"claims/{record_path('', name).stem}.md" for name in RECORDS)])
def test_the_links_of_a_page_exist(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (DOCS / name).read_text())
    assert len(links) >= 3 and [link for link in links if not (DOCS / name).parent.joinpath(link).exists()] == []


def test_the_overview_links_every_claim_with_its_page_and_picture():
    text = (DOCS / "claims.md").read_text()
    for name in RECORDS:
        claim = laboratory.load_claim(name).CLAIM
        stem = f"claims/{record_path('', name).stem}"
        assert f"| {claim.number} | [{claim.title}]({stem}.md) ([picture]({stem}.png)) | {RECORDS[name].verdict} | " in text


# ---------------------------------------------------------------- exact values

@pytest.mark.parametrize("nats, K", [(2, 16), (6, 256), (10, 64)])
def test_the_quadrature_does_not_change_with_its_step(nats, K):
    assert exact_bound(nats, 20, K) == pytest.approx(_exact_bound(nats, 20, K, step=0.5), abs=1e-6)


@pytest.mark.parametrize("nats, d, K", [(1, 1, 2), (3, 5, 8), (6, 20, 256)])
def test_the_quadrature_agrees_with_the_mean_of_many_draws(nats, d, K, rng):
    mean, error = optimal_bound(nats, d, K, pairs=40_000, rng=rng)
    assert exact_bound(nats, d, K) == pytest.approx(mean, abs=4 * error)


def test_count_gives_the_number_of_negatives_of_a_view():
    for N in (2, 3, 8):
        views = [(image, view) for image in range(N) for view in range(2)]
        negatives = [other for other in views if other[0] != views[0][0]]
        expected = len(negatives), math.log(len(negatives) + 1), math.log2(len(negatives) + 1)
        assert count(N) == pytest.approx(expected, rel=1e-12)


def test_captions_name_two_numbers_and_templates_one_beside_the_class(rng):
    grammar = zero_shot.Grammar(rng)
    numbers = {word for same in WORDS["digit"] for word in same[:2]}
    for _ in range(200):
        caption = grammar.caption(7, 0)
        assert sum(word in numbers for word in caption.split()) == 2 and {"red", "crimson"} & set(caption.split())
        assert 1 <= len(grammar.tokenize([caption])[0]) <= zero_shot.LENGTH
        template = grammar.template()
        assert template.count("{}") == 1 and sum(word in numbers for word in template.split()) == 1


def test_held_out_combinations_occur_only_in_the_test_images(rng):
    labels = np.repeat(np.arange(10), 50)
    ink = np.full((500, 2, 2, 1), 255, dtype=np.uint8)
    for held_out in (False, True):
        images, colours = zero_shot.paint(ink, labels, rng, held_out)
        assert images.shape == (500, 2, 2, 3) and images.dtype == np.uint8
        assert (zero_shot.HELD_OUT[labels, colours] == held_out).all()


# ---------------------------------------------------------------- the command

def run(*options):
    """Exit code of `python examples/claims` with these options; claims run in this process, one after the other."""
    options += ("--jobs", 1) if options[0] == "run" else ()
    with pytest.raises(SystemExit) as end:
        command(functools.partial(__main__.main, [str(option) for option in options]))
    return end.value.code or 0


@pytest.fixture
def quick(monkeypatch):
    """Skip the draws and the training of claims 2 and 3; returns the list of (claim, seed) measured so far."""
    seeds = []

    def measured(measure):
        def remembering(setting):
            seeds.append((measure.__module__.rpartition(".")[2], setting.seed))
            return measure(setting)
        return remembering

    monkeypatch.setattr(tightness, "drawn_nt_xent", lambda m, N, setting: symbol_estimates(m, N).nt_xent)
    monkeypatch.setattr(counting, "saturate", lambda *args, **options: [
        symbol_estimates(counting.IMAGES, N).nt_xent for N in counting.BATCHES])
    for module in (tightness, counting):
        monkeypatch.setattr(module, "measure", measured(module.measure))
    return seeds


def test_a_run_prints_the_table_and_leaves_a_record_and_a_page(quick, tmp_path, capsys):
    assert run("run", 2, "counting", "--seeds", 0, 5, "--size", "fast", "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "published or exact" in printed and "0.6962" in printed
    assert "reproduced (fast size: docs/claims.md has the verdicts): the run is within" in printed
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 80
    assert "03-counting.json" in printed and ("03-counting.png" in printed) == (viz.Figure is not None)
    assert quick == [("tightness", 0), ("tightness", 5), ("counting", 0), ("counting", 5)]
    record = json.loads((tmp_path / "02-tightness.json").read_text())
    assert record["command"] == "python examples/claims run 2 --seeds 0 5 --size fast"
    assert (record["seeds"], record["verdict"], len(record["seconds"])) == ([0, 5], "reproduced", 2)
    assert record["metrics"]["NT-Xent, m = 2, N = 8"] == pytest.approx([0.6962, 0.6962], abs=5e-5)
    assert run("report", "--records", tmp_path) == 0
    text = (tmp_path / "claims.md").read_text()
    assert "[The best critic" in text and ("](02-tightness.png)" in text) == (viz.Figure is not None)
    assert "These 2 took 0 minutes" in text and "not yet run" in text and "How many negatives" in text
    assert sorted(path.name for path in tmp_path.glob("*.md")) == ["02-tightness.md", "03-counting.md", "claims.md"]
    text = (tmp_path / "02-tightness.md").read_text()
    assert ("![The best critic" in text and "](02-tightness.png)" in text) == (viz.Figure is not None)
    assert "**Reproduced (fast size: docs/claims.md has the verdicts):**" in text
    assert "how many negatives" in (tmp_path / "03-counting.md").read_text()


def test_a_long_measurement_logs_its_progress_where_there_is_no_terminal():
    logged = []
    with laboratory.heartbeat(lambda: "seed 0 (1 of 3): 45 s", logged.append, seconds=0.01):
        while len(logged) < 2:
            time.sleep(0.01)
    assert logged[0] == "    seed 0 (1 of 3): 45 s"
    length = len(logged)
    time.sleep(0.05)
    assert len(logged) == length


def test_in_a_terminal_the_progress_is_one_line_below_the_output(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with laboratory.heartbeat(lambda: "seed 0 (1 of 3): 45 s", pytest.fail):
        while "45 s" not in terminal.getvalue():
            time.sleep(0.01)
        __main__.log("  seed 0: 50 s")
    written = re.split("[\r\n]", terminal.getvalue())
    assert "  seed 0: 50 s" in written and written.count("") > 1                      # on its own line
    assert not written[-1].strip()  # the progress line has been erased


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_names_the_seed_and_the_remaining_time(monkeypatch):
    texts = []

    @contextlib.contextmanager
    def once(progress, log):
        yield
        texts.append(progress())

    monkeypatch.setattr(laboratory, "heartbeat", once)
    monkeypatch.setattr(laboratory, "published_seconds", {"tightness": 40}.get)
    module = types.SimpleNamespace(CLAIM=tightness.CLAIM, measure=lambda setting: {"a": 1.0})
    monkeypatch.setattr(laboratory, "load_claim", lambda name: types.SimpleNamespace(verdict=lambda metrics: (VERDICTS[0], "")))
    experiment(module, [3, 5, 6], log=silent)
    assert texts[0] == "seed 3 (1 of 3): 0 s, preparing; about 120 s left"
    assert texts[1] == "seed 5 (2 of 3): 0 s, preparing"                             # based on seed 3, which took 0 s
    experiment(module, [0], size="fast", log=silent)
    assert texts[3] == "seed 0 (1 of 1): 0 s, preparing"


@pytest.mark.parametrize("columns, most", [("60", 60), ("80", 80), ("200", 100)])
@each_record
def test_the_output_of_a_run_fits_the_terminal(record, columns, most, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    __main__.show(record, "runs/claims")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= most and not any(line.endswith(" ") for line in lines)


def test_a_claim_that_fails_does_not_stop_the_others(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tightness, "measure", lambda setting: {"never": math.nan})
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path) == 1
    assert list(read_records(tmp_path)) == ["counting"]
    assert "claim 2, seed 0: never is not finite" in capsys.readouterr().err


def started(*options, **streams):
    script = str(Path(__main__.__file__).parent)
    return subprocess.Popen([sys.executable, script, "run", *map(str, options)], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, **streams)


def test_claims_that_run_at_the_same_time_name_themselves_in_their_lines(tmp_path):
    (tmp_path / "03-counting.json").mkdir()                      # so that its record cannot be written
    process = started(2, 3, "--seeds", 0, "--size", "fast", "--out", tmp_path, "--jobs", 2)
    output, errors = process.communicate()
    assert {line[:4] for line in output.splitlines()} == {" 2  ", " 3  "}
    assert max(len(line) for line in output.splitlines() if str(tmp_path) not in line) <= 80
    assert process.returncode == 1 and "03-counting.json" in errors and errors.endswith("failed: 3\n")
    (tmp_path / "03-counting.json").rmdir()
    assert read_records(tmp_path)["tightness"].metrics == experiment(tightness, [0], size="fast", log=silent).metrics


def test_ctrl_c_ends_all_claims_that_run_at_the_same_time(tmp_path):
    process = started(5, 6, "--size", "fast", "--out", tmp_path, "--jobs", 2, start_new_session=True)
    assert process.stdout.readline()[:4] in (" 5  ", " 6  ")     # of the first that has begun
    process.send_signal(signal.SIGINT)                           # to the parent alone
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; --resume skips the claims that are done" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)                                # none is left


def test_an_unwritable_folder_is_an_error_before_anything_is_measured(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("run", 2, "--out", tmp_path / "file" / "records") == 2 and quick == []
    message = f"--out {tmp_path / 'file' / 'records'}: expected a folder to write to (Not a directory); give another"
    assert message in capsys.readouterr().err


def test_two_runs_do_not_measure_the_same_claim_for_one_folder(quick, tmp_path, capsys):
    with contextlib.closing(FolderLock(tmp_path, ".tightness.lock")):
        assert run("run", 2, "--seeds", 0, "--out", tmp_path) == 2 and quick == []
        assert f"claim 2: another run (pid {os.getpid()}) is writing there" in capsys.readouterr().err
        assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path) == 1 and quick == [("counting", 0)]
        assert capsys.readouterr().err.endswith("failed: 2\n")
    assert run("run", 2, "--seeds", 0, "--out", tmp_path) == 0
    assert [*read_records(tmp_path)] == ["tightness", "counting"] and not list(tmp_path.glob(".*"))


def test_a_claim_named_twice_is_measured_once(quick, tmp_path):
    assert run("run", 2, "tightness", 2, "--seeds", 0, "--out", tmp_path) == 0
    assert quick == [("tightness", 0)]
    assert read_records(tmp_path)["tightness"].caution == " (one seed: no standard deviation)"


def test_generated_digits_do_not_replace_mnist(quick, tmp_path, monkeypatch, capsys):
    def absent(data_dir=None, **options):
        raise Unavailable("MNIST is not here", "")

    monkeypatch.setattr(__main__, "load_mnist", absent)
    assert run("run", 3, "--seeds", 0, "--out", tmp_path) == 0 and quick == [("counting", 0)]     # no record to replace
    path = tmp_path / "03-counting.json"
    path.write_text(path.read_text().replace('"drawn by the experiment"', '"MNIST"'))
    before = path.read_bytes()
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path) == 2 and quick == [("counting", 0)]
    assert "its records are of MNIST, and MNIST is not here; name MNIST's folder with --data-dir" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run("run", 2, "--seeds", 0, "--out", tmp_path) == 0


def test_a_fast_run_does_not_replace_a_default_one(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for size in ("default", "fast"):
        assert run("run", 2, "--seeds", 0, "--size", size) == 0
    assert [read_records(f"runs/claims{fast}")["tightness"].size for fast in ("", "-fast")] == ["default", "fast"]


def test_redraw_computes_verdicts_and_pictures_again(quick, tmp_path, monkeypatch):
    assert run("run", 2, "--seeds", 0, "--out", tmp_path) == 0
    monkeypatch.setattr(tightness, "verdict", lambda metrics: (NOT_REPRODUCED, "of another mind"))
    assert run("report", "--records", tmp_path) == 0
    assert read_records(tmp_path)["tightness"].verdict == "reproduced"
    assert run("report", "--records", tmp_path, "--redraw") == 0
    assert read_records(tmp_path)["tightness"].reason == "of another mind" in (tmp_path / "02-tightness.md").read_text()


def test_ctrl_c_keeps_the_finished_records_and_resume_continues(quick, tmp_path, monkeypatch, capsys):
    measure = counting.measure

    def interrupted(setting):
        raise KeyboardInterrupt

    monkeypatch.setattr(counting, "measure", interrupted)
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path) == 130
    assert "interrupted; --resume skips the claims that are done" in capsys.readouterr().err
    assert list(read_records(tmp_path)) == ["tightness"] and [path.suffix for path in tmp_path.glob(".*")] == []
    monkeypatch.setattr(counting, "measure", measure)
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path, "--resume") == 0
    assert list(read_records(tmp_path)) == ["tightness", "counting"] and quick == [("tightness", 0), ("counting", 0)]
    assert run("run", 2, "--seeds", 1, "--out", tmp_path, "--resume") == 0            # other seeds than the record's
    assert run("run", 2, "--seeds", 1, "--out", tmp_path) == 0                        # without --resume
    assert quick[2:] == [("tightness", 1)] * 2
    kept = json.loads((tmp_path / "02-tightness-2.json").read_text())        # that of seed 0; that of seed 1 was replaced
    assert kept["seeds"] == [0] and read_records(tmp_path)["tightness"].seeds == [1]
    assert capsys.readouterr().out.count("the earlier record, --seeds 0 --size default --backend numpy, is kept as") == 1


def test_an_empty_folder_name_is_refused(quick, capsys):
    assert run("run", 2, "--out", "") == 2
    assert "--out: expected the name of a folder, got ''; is a variable unset?" in capsys.readouterr().err


def test_a_folder_of_mnist_is_used_or_a_warning_is_given(quick, tmp_path, monkeypatch, capsys):
    """--size fast ignores --data-dir. --resume does not take records of generated digits for records of the folder."""
    assert run("run", 2, "--seeds", 0, "--out", tmp_path / "fast", "--size", "fast", "--data-dir", "nowhere") == 0
    assert capsys.readouterr().err.count("warning: ignored with --size fast, which generates its digits: --data-dir") == 1
    loaded: list = []
    monkeypatch.setattr(__main__, "load_mnist", lambda folder, log: loaded.append(folder))
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path) == 0 and "warning" not in capsys.readouterr().err
    for name, data in (("tightness", "drawn by the experiment"), ("counting", "generated digits")):
        path = record_path(tmp_path, name)
        path.write_text(json.dumps({**json.loads(path.read_text()), "data": data}))
    del quick[:]
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path, "--resume") == 0 and not quick
    assert run("run", 2, 3, "--seeds", 0, "--out", tmp_path, "--resume", "--data-dir", tmp_path) == 0
    assert quick == [("counting", 0)] and loaded == [str(tmp_path)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": "MNIST"}))
    assert run("run", 3, "--seeds", 0, "--out", tmp_path, "--size", "fast") == 2 and json.loads(path.read_text())["data"] == "MNIST"
    assert "its records are of MNIST, and --size fast is of generated digits" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["MNIST", "generated digits", "drawn by the experiment"])
@pytest.mark.parametrize("size", ["fast", "default", "full"])
@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_record_of_generated_digits_is_not_shown_as_one_of_mnist(data, size, seeds):
    """Beside published values its verdict says so, in the terminal and on the pages."""
    record = laboratory.Record(1, "tightness", size, "numpy", data, seeds, "", [], "reproduced", "", {})
    assert ("generated digits, not the data of the published values" in record.caution) == (data[0] == "g" and size != "fast")
    assert (record.caution == "") == (len(seeds) > 1 and size != "fast" and data[0] != "g")


@pytest.mark.parametrize("options, message", [
    (("run", "17"), "there is no claim 17; python examples/claims list shows those there are"),
    (("run", "bigbang"), "there is no claim bigbang"),
    (("run", "2", "--data-dir", "nowhere"), "nowhere"),
    (("run", "2", "--seeds", "-1"), "expected an integer >= 0, got -1"),
    (("run", "2", "--seeds", "0", "1", "0"), "--seeds: expected each seed once, got 0 1 0"),
    (("run", "2", "--size", "huge"), "invalid choice: 'huge'"),
    (("report", "--records", "nowhere"), "--records nowhere: found no records of claims"),
    (("count", "1"), "expected an integer >= 2, got 1"),
], ids=["number", "name", "data", "seed", "seeds", "size", "no records", "one image"])
def test_invalid_options_give_one_line(options, message, capsys):
    assert run(*options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]


def test_a_file_that_is_not_a_record_is_named(tmp_path):
    for text in ("{", '{"claim": 2}', "[]"):
        (tmp_path / "02-tightness.json").write_text(text)
        with pytest.raises(RunError, match="02-tightness.json is not a record of a claim .*; run .* without --resume"):
            read_records(tmp_path)


def test_a_record_under_the_name_of_another_claim_is_refused(tmp_path):
    (tmp_path / "02-tightness.json").write_bytes((DOCS / "claims/03-counting.json").read_bytes())
    with pytest.raises(RunError, match="02-tightness.json is not a record of a claim .it is that of counting.; run"):
        read_records(tmp_path)


def test_without_matplotlib_a_record_is_written_and_a_line_printed(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(viz, "Figure", None)
    assert run("run", 2, "--seeds", 0, "--out", tmp_path) == 0
    assert "no pictures: they need matplotlib" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["02-tightness.json"]
    assert run("report", "--records", tmp_path) == 0
    assert not any(".png" in path.read_text() for path in tmp_path.glob("*.md"))


def test_a_verdict_is_one_of_three(monkeypatch, quick):
    monkeypatch.setattr(tightness, "verdict", lambda metrics: ("true", "it looks so"))
    with pytest.raises(ValueError, match="claim 2: verdict\\(\\) must return one of"):
        experiment(tightness, [0], log=silent)
    assert len(VERDICTS) == 3


def test_the_folder_runs_from_anywhere(tmp_path):
    package = Path(minicl.__file__).parents[1]
    ran = subprocess.run([sys.executable, laboratory.__file__.rpartition("laboratory")[0], "count", "2"], cwd=tmp_path,
                         env=os.environ | {"PYTHONPATH": str(package)}, capture_output=True, text=True)
    assert ran.stdout.startswith("N = 2: 2 negatives") and ran.stderr == ""


def test_the_package_does_not_import_claims():
    sources = Path(minicl.__file__).parent.rglob("*.py")
    assert not [path for path in sources if re.search(r"^\s*(from|import) \.*claims", path.read_text(), re.M)]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_list_fits_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and (len(lines) == len(NAMES)) == (columns == 200)


def test_list_and_count_print_the_claims_and_the_negatives(capsys):
    assert run("list") == 0 and run("count", 256, 4096) == 0
    printed = capsys.readouterr().out
    assert " 2  tightness " in printed
    assert "N = 256: 510 negatives, at most log 511 = 6.24 nats = 9.00 bits\nN = 4096: 8190 negatives" in printed


def test_a_setting_picks_its_size_and_draws_its_data():
    assert [Setting(size=size).pick(1, 2, 3) for size in laboratory.SIZES] == [1, 2, 3]
    setting = Setting(3, "fast", print=silent)
    images = setting.images(20, 10)
    assert (len(images.train_images), len(images.test_images), setting.data) == (20, 10, "generated digits")
    other = Setting(4, "fast", print=silent).images(20, 10)
    assert (images.train_images != other.train_images).any()


@pytest.mark.parametrize("values, expected", [
    ([97.90, 98.08, 97.88], "97.95 ± 0.11"), ([510, 510], "510"), ([0.5], "0.500"), ([-1.575], "-1.57"),
    ([-1e-15], "0.0000"), ([-1e-9], "-0.00000000100"), ([2.66e-5] * 3, "0.0000266"), ([0.3, 0.1 + 0.2, 0.3], "0.300"),
    ([1e-6, 2e-6, 3e-6], "0.0000020 ± 0.0000010"), ([0.5, 0.50002, 0.49998], "0.500000 ± 0.000020"),
])
def test_mean_and_std_have_as_many_digits_as_the_std_supports(values, expected):
    assert mean_std(values) == expected


def test_no_line_of_a_paragraph_begins_like_a_list():
    for words in range(18, 26):
        lines = laboratory.filled("word " * words + "log K - L >= 0 for N = 2. Then more").splitlines()
        assert len(lines) <= 2 and lines[-1].split()[0] in ("word", "log", "K", "L", "0", "for", "N", "Then", "more")


def test_no_line_of_a_paragraph_ends_with_a_hyphen():
    assert not any(line.endswith("-") for words in range(20, 26) for line in laboratory.filled(
        "word " * words + "NT-Xent's figure").splitlines())


def test_fractions_are_shown_as_percent():
    assert mean_std([0.979, 0.981], ".1f", " %") == "98.0 ± 0.1 %" and mean_std([0.5, 0.5], "+.2f") == "+0.50"
