"""Runs of several processes: evaluation, checkpoints, the log, failures and signals. Skips without MPI."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from example_runs import EXAMPLES, read_run
from mpi import CHECKS, check, children, launch, left_behind, needs_mpi, start
from PIL import Image
from small_runs import assert_same_end

from minicl.checkpoint import load_checkpoint

pytestmark = needs_mpi
SMALL_RUN = CHECKS / "small_run.py"
SIZES = pytest.mark.parametrize("size", [2, 3])


def run(size, out, *options, **settings):
    return launch(size, SMALL_RUN, "--out", out, "--log-every", 1, *options, timeout=30, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{size: the folder of an uninterrupted run}"""
    folders = {size: tmp_path_factory.mktemp("runs") / str(size) for size in (1, 2, 3)}
    for size, folder in folders.items():
        done = run(size, folder)
        assert done.returncode == 0, done.stderr
    return folders


@SIZES
def test_evaluation_on_several_processes_equals_that_on_one(size):
    errors = check(size, "evaluation.py")["errors"]
    assert max(errors.values()) < 1e-12


# ---------------------------------------------------------------- the run's folder

@SIZES
def test_a_run_of_several_processes_equals_that_of_one_up_to_rounding(whole, size):
    (arrays, meta), (mine, my_meta) = (load_checkpoint(whole[n] / "checkpoint.npz") for n in (1, size))
    for name, array in arrays.items():
        if not name.startswith("all gradients."):            # which only a checkpoint of one process has
            np.testing.assert_allclose(mine[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    assert (meta["rng"], meta["config"]["batch"]) == (my_meta["rng"], my_meta["config"]["batch"])
    assert [line["step"] for line in meta["log"]] == [line["step"] for line in my_meta["log"]]
    np.testing.assert_allclose(*([line["loss"] for line in log] for log in (meta["log"], my_meta["log"])), rtol=1e-4)


def test_only_the_first_process_prints_and_reports_how_a_batch_is_divided(out):
    done = run(3, out, "--log-every", 5)
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        "3 processes, each with 4 of a batch's 12 items", "step 1/12", "step 6/12", "step 11/12", "step 12/12", "", "",
        f"everything is in {out}; docs/runs.md explains its files"] and done.stderr == ""
    assert sorted(os.listdir(out)) == ["checkpoint.npz", "config.json", "log.jsonl", "result.json"]


@pytest.mark.parametrize("options, said", [
    (["--batch", "8"], "--batch 8 is the batch of all 3 processes, so it must be a multiple of 3; give 6 or 9"),
    (["--resume"], "no checkpoint at"),
])
def test_an_error_of_all_processes_is_printed_once_before_anything_is_written(out, options, said):
    done = run(3, out, *options)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 2 and len(errors) == 1 and errors[0].startswith("error: ") and said in errors[0]
    assert not out.exists() and done.stdout == ""


# ---------------------------------------------------------------- differences between processes

@pytest.mark.parametrize("fault, said", [
    ("loss", "the loss of step 0 differs between processes"),
    ("across", "after step 5, model.steps.0.weight differs between processes"),
    ("seed", "after step 5, rng differs between processes"),
    ("data", "the processes have different data or options"),
    ("run", "this is process 0 of 2, and each would make its own run; pass the world"),
])
def test_a_difference_between_processes_ends_the_run_before_it_is_saved(out, fault, said):
    done = run(2, out, FAULT=fault)
    assert done.returncode == 2 and f"error: {said}" in done.stderr
    assert not (out / "checkpoint.npz").exists() and left_behind(out) == []


def test_a_whole_batch_on_each_process_is_refused(out):
    done = run(2, out, FAULT="part")
    said = "ValueError: RandomHorizontalFlip: images: all 2 processes have the same rows of the batch, so each row counts 2 times"
    assert done.returncode == 1 and said in done.stderr and not out.exists()
    code = """if True:
        import numpy as np
        from minicl.contrastive import clip_loss
        from minicl.distributed import get_world
        world = get_world()
        try:
            clip_loss(np.eye(4), np.eye(4), 1.0, world=world)
        except ValueError as error:  # both processes raise; if both printed, their lines could mix
            if world.rank == 0:
                print(error)"""
    done = launch(2, ["-c", code])
    assert done.stdout.startswith("clip_loss: all 2 processes have the same rows"), done.stderr


# ---------------------------------------------------------------- the failure of one process

@pytest.mark.parametrize("fault, code, said", [
    ("bug", 1, "process 1 of 2: Traceback"), ("exit 3", 3, "SystemExit: 3"), ("exit 0", 1, "SystemExit: 0"),
    ("exit words", 1, "process 1 of 2: SystemExit: some words\n"),
    ("leave", 2, "process 1 left the loop over run.steps() in step 7, and process 0 did not"),
    ("finish", 2, "process 1 of 2: error: Run.finish: the loop over run.steps() was left in step 7 of 12"),
    ("nan", 2, "process 1 of 2: error: made up\n"), ("kill", None, ""), ("segfault", None, ""),
])
def test_the_failure_of_one_process_ends_all_and_leaves_the_last_checkpoint(whole, out, fault, code, said):
    started = time.monotonic()
    done = run(2, out, FAULT=fault)
    assert time.monotonic() - started < 20 and done.returncode == (code or done.returncode) != 0 and said in done.stderr
    assert left_behind(out) == []
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == 5
    if fault == "kill":
        assert run(2, out, "--resume").returncode == 0
        assert_same_end(out, whole[2])
    elif fault == "segfault":                                # another number of processes: equal up to rounding
        assert run(3, out, "--resume").returncode == 0
        for name, array in load_checkpoint(whole[2] / "checkpoint.npz")[0].items():
            np.testing.assert_allclose(load_checkpoint(out / "checkpoint.npz")[0][name], array, rtol=1e-4, atol=1e-6)


def test_all_processes_may_leave_the_loop_in_the_same_step(out):
    done = run(2, out, FAULT="all leave", SLOW="0.1")
    assert done.returncode == 0 and done.stderr == "" and load_checkpoint(out / "checkpoint.npz")[1]["step"] == 5


@pytest.mark.parametrize("size", [2, 3])
def test_one_process_stops_all_after_the_same_step_with_a_checkpoint(out, size):
    done = run(size, out, FAULT="stop")
    assert done.returncode == 0 and "everything is in" in done.stdout and done.stderr == ""
    assert load_checkpoint(out / "checkpoint.npz")[1]["step"] == 8


def test_a_script_for_one_process_refuses_several(out):
    done = launch(2, EXAMPLES / "export.py", out, "encoder.safetensors")
    assert done.returncode == 2 and "error: this script runs in one process, but 2 were started" in done.stderr, done.stderr
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        assert "command(main" not in text or ("command(main, alone=True)" in text) != ("get_world(" in text), path


def test_batch_norm_groups_that_the_processes_cannot_share_are_refused_at_the_start(out):
    done = launch(3, EXAMPLES / "moco_mnist.py", "--data", "digits", "--batch", 24, "--splits", 8, "--out", out)
    assert done.returncode == 2 and "--splits 8 is the splits of all 3 processes" in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr and not out.exists()


def test_a_failure_before_training_leaves_no_folder(out):
    done = run(2, out, FAULT="before")
    assert done.returncode == 2 and done.stderr.count("nothing to train on") == 1 and not out.exists()


# ---------------------------------------------------------------- signals

@pytest.fixture(scope="module")
def library():
    """The name and version of the MPI library."""
    return launch(1, ["-c", "from mpi4py import MPI; print(MPI.Get_library_version())"]).stdout


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("target", ["all", "mpirun", "one process"])
def test_a_signal_stops_all_processes_after_the_same_step_with_a_checkpoint(whole, out, number, code, target, library):
    if target != "one process" and "MPICH Version" not in library:
        pytest.skip("only MPICH's mpirun waits for its processes to save (docs/distributed.md)")
    process = start(2, SMALL_RUN, "--out", out, "--log-every", 1, SLOW="0.1")
    try:
        while "step 3/" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        if target == "one process":                          # the last process, which writes no files
            os.kill(max(children(process.pid)), number)
        else:
            (os.killpg if target == "all" else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code and f"interrupted by {number.name}" in errors
    assert "continue with the same options and --resume --out" in output and left_behind(out) == []
    step = load_checkpoint(out / "checkpoint.npz")[1]["step"]
    assert 3 <= step < 12 and f"interrupted after step {step} of 12" in output
    assert run(2, out, "--resume").returncode == 0
    assert_same_end(out, whole[2])


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1])
def test_a_signal_while_mpi_starts_leaves_no_process_waiting(out, delay):
    """The signal may interrupt the exchange with the launcher."""
    process = start(2, SMALL_RUN, "--out", out)
    ids = []
    try:
        while len(ids) < 2 or "libmpi" not in Path(f"/proc/{ids[0]}/maps").read_text():
            ids = sorted(children(process.pid))
        time.sleep(delay)
        os.kill(ids[0], signal.SIGTERM)
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode != 0 and left_behind(out) == []


# ---------------------------------------------------------------- the examples

PICTURES = "--data-dir PICTURES --size 32 --batch 20 --width 2 --dim 8"
CALLS = ["simclr_mnist", "simclr_mnist --clip-grad 0.1 --evaluate-every 1", "moco_mnist", "moco_mnist --symmetric",
         "simclr_mnist --chunk 20", "moco_mnist --chunk 10", "moco_mnist --symmetric --splits 2 --chunk 10", "clip_captions --chunk 4",
         "clip_captions", "clip_captions --text transformer", "circle", "collapse", "cpc_sequences",
         "cpc_sequences --data digit-rows", "simclr_cifar10", "simclr_cifar10 --method simclr --evaluate-every 1",
         "mutual_information", f"simclr_images {PICTURES}", f"moco_images {PICTURES} --queue 50 --splits 2",
         "clip_images --captions PHOTOS/captions.csv --size 32 --batch 20 --width 2 --dim 8 --text bag"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """{number of processes, 1 or 2: the folder with one run per call}."""
    pictures = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(pictures, images=np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8), labels=np.arange(100) % 5)
    photos = tmp_path_factory.mktemp("photos")
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (60, 40, 36, 3), np.uint8)):
        Image.fromarray(pixels).save(photos / f"{k}.png")
    (photos / "captions.csv").write_text("image,caption\n" + "".join(f"{k}.png,picture {k % 7} of {k % 5}\n" for k in range(60)))
    folders = {size: tmp_path_factory.mktemp("examples") for size in (1, 2)}
    for size, folder in folders.items():
        done = launch(size, CHECKS / "examples.py", folder, " , ".join(CALLS).replace("PICTURES", str(pictures)).replace("PHOTOS", str(photos)),
                      MINICL_CACHE=str(pictures.parent))
        assert done.returncode == 0, done.stdout + done.stderr
    return folders


def test_every_training_example_is_in_the_calls():
    trained = {path.stem for path in EXAMPLES.glob("*.py") if "run.steps(" in path.read_text()}
    assert trained == {call.split()[0] for call in CALLS}


@pytest.mark.parametrize("number", range(len(CALLS)), ids=CALLS)
def test_the_first_losses_of_an_example_on_two_processes_equal_those_on_one(examples, number):
    """Compares the first line of the log, which differs if any part of the example ignores `world`."""
    (result, log), (other_result, other_log) = (read_run(folder / str(number)) for folder in examples.values())
    assert result.keys() == other_result.keys() and [line.keys() for line in log] == [line.keys() for line in other_log]
    for name, value in log[0].items():
        assert other_log[0][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert other_log[-1]["loss"] == pytest.approx(log[-1]["loss"], rel=0.05)             # float32 runs diverge slowly


def test_examples_on_gpus_with_nccl_begin_as_on_one_cpu(examples, tmp_path):
    """Runs on the stand-in for CuPy, with one GPU per process and NCCL's calls carried by MPI."""
    calls = ["simclr_mnist --evaluate-every 1", "moco_mnist", "clip_captions", "cpc_sequences"]
    done = launch(2, CHECKS / "on_gpus.py", CHECKS / "examples.py", tmp_path, " , ".join(f"{call} --backend cupy" for call in calls))
    assert done.returncode == 0, done.stdout + done.stderr
    for k, call in enumerate(calls):
        log = read_run(examples[1] / str(CALLS.index(call.split(" --")[0])))[1]
        assert read_run(tmp_path / str(k))[1][0]["loss"] == pytest.approx(log[0]["loss"], rel=1e-5), call
