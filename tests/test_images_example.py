"""examples/simclr_images.py and moco_images.py run on folders of pictures, with and without labels, and resume."""

import json
import math
import os
import shlex
import signal

import numpy as np
import pytest
import simclr_cifar10
from example_runs import EXAMPLES, read_run, run_example
from picture_files import Image, numbered, write_pictures

from minicl import nn, viz
from minicl.data import RESIZE
from minicl.data.shapes import SHAPES, draw_shapes
from minicl.methods import MoCo
from minicl.run import Run

SMALL = ("--size", 32, "--width", 2, "--dim", 8, "--batch", 20, "--epochs", 1, "--log-every", 1)
MOCO = ("--queue", 40, "--splits", 2)
SCRIPTS = pytest.mark.parametrize("script", ["simclr_images", "moco_images"])
ACCURACIES = ["knn_h", "knn_z", "probe_h", "probe_z"]


@pytest.fixture
def example(monkeypatch, tmp_path):
    """example(*options, out=name, script=name) runs a script without plots and returns (exit code, folder)."""
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))

    def run(*options, out="out", script="simclr_images"):
        small = (*SMALL, *(MOCO if script == "moco_images" else ()))
        return run_example(script, *small, *options, "--out", tmp_path / out), tmp_path / out
    return run


@pytest.fixture
def photos(tmp_path):
    write_pictures(tmp_path / "my phötos", [*numbered("cat", 30, ".jpg"), *numbered("dog", 36)])
    return tmp_path / "my phötos"


@SCRIPTS
def test_a_labelled_folder_is_learned_and_evaluated(example, photos, script, xp):
    backend = "numpy" if xp is np else "cupy"
    code, folder = example("--data-dir", photos, "--evaluate-every", 1, "--backend", backend, script=script)
    result, log = read_run(folder)
    assert code == 0 and result["data"] == "my phötos" and len(log) == 2             # 59 of 66 train: 2 batches
    assert all(0 <= result[key] <= 1 for key in [*ACCURACIES, "waiting"]) and "knn_h" in log[-1]


@pytest.mark.parametrize("options", [(), ("--no-labels",)])
def test_without_labels_metrics_that_need_them_are_left_out_with_a_message(example, photos, tmp_path, capsys, options):
    if not options:
        write_pictures(tmp_path / "flat", numbered("", 60))
    code, folder = example("--data-dir", photos if options else tmp_path / "flat", "--evaluate-every", 1, *options)
    result, log = read_run(folder)
    said = capsys.readouterr().out
    assert code == 0 and not {*ACCURACIES} & result.keys() and math.isfinite(result["loss"]) and "knn_h" not in log[-1] and log[-1]["rank_h"] > 1
    assert "evaluating h without labels" in said and ("no labels: there is no folder" in said) == (not options)


def test_the_config_records_how_a_picture_is_prepared(example, photos):
    config = json.loads((example("--data-dir", photos)[1] / "config.json").read_text())
    assert (config["size"], config["channels"], config["resize"], config["encoder"]) == (32, 3, RESIZE, "convnet")


def test_a_queue_larger_than_the_data_warns_and_one_below_the_batch_is_refused(example, photos, capsys):
    assert example("--data-dir", photos, "--queue", 60, script="moco_images")[0] == 0
    assert "warning: the queue of 60 keys outgrows the 59 training images" in capsys.readouterr().out
    assert example("--data-dir", photos, "--queue", 10, script="moco_images")[0] == 2
    assert "--batch must be a multiple of --splits" in capsys.readouterr().err


def test_keys_of_a_querys_own_picture_are_not_negatives(example, photos, monkeypatch):
    """The queue stores an id with each key, 0 for none. From the second epoch on some ids are those of the batch."""
    given = []
    loss = MoCo.loss
    monkeypatch.setattr(MoCo, "loss", lambda model, q, k, tau, ids: given.append((ids, model.queue.ids.data[:len(model.queue)].copy()))
                        or loss(model, q, k, tau, ids=ids))
    code, folder = example("--data-dir", photos, "--queue", 48, "--epochs", 3, script="moco_images")
    result, log = read_run(folder)
    assert code == 0 and len(given) == 6 and all((known > 0).all() for _, known in given)
    assert [np.isin(known - 1, ids).any() for ids, known in given] == [False, False, True, True, True, True]
    candidates = [[1 + sum(key != 1 + own for key in known.tolist()) for own in ids.tolist()] for ids, known in given]
    assert [line["chance"] for line in log] == pytest.approx([np.log(of_queries).mean() for of_queries in candidates])
    assert result["cap_nats"] == pytest.approx(log[-1]["chance"]) and 40 <= min(candidates[-1]) < max(candidates[-1]) <= 49


def test_chunks_of_a_batch_train_moco_as_the_whole(example, photos, monkeypatch):
    """Without batch norm the logged losses are those of whole batches, up to rounding."""
    heads: list[nn.Module] = []
    monkeypatch.setitem(simclr_cifar10.ENCODERS, "convnet", lambda shape, width, rng: nn.MLP(shape, (8,), rng=rng))
    monkeypatch.setattr(nn, "projection_head", lambda _, features, hidden, dim, rng:
                        heads.append(nn.Linear(features, dim, rng=rng)) or heads[-1])
    whole, chunks = (read_run(example("--data-dir", photos, "--epochs", 3, *chunk, out=f"out{len(chunk)}", script="moco_images")[1])[1]
                     for chunk in ((), ("--chunk", 4)))
    assert len(heads) == 2 and len(whole) == len(chunks) == 6 and whole[-1]["loss"] > 0.1
    for key in ("loss", "chance", "alignment", "uniformity"):
        np.testing.assert_allclose([line[key] for line in chunks], [line[key] for line in whole], rtol=2e-4, atol=1e-6)


def test_a_chunk_that_splits_mocos_groups_is_refused(example, photos, capsys):
    for chunk in (6, 3, 2):
        assert example("--data-dir", photos, "--chunk", chunk, script="moco_images")[0] == 2
        assert f"--chunk {chunk} must divide --batch 20 and be a multiple of --splits 2" in capsys.readouterr().err


@pytest.mark.parametrize("script, n, batch", [("simclr_images", 44, 20), ("moco_images", 44, 16), ("simclr_images", 21, 8)])
def test_the_default_batch_is_half_of_few_pictures_also_when_resumed(tmp_path, monkeypatch, capsys, script, n, batch):
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "few", numbered("", n))
    train = n - round(n / 10)
    options = ("--size", 32, "--width", 2, "--dim", 8, "--epochs", 2, "--data-dir", tmp_path / "few", "--out", tmp_path / "out")
    assert run_example(script, *options) == 0
    said = capsys.readouterr().out
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert f"--batch {batch}, about half of the {train} training pictures" in said and config["batch"] == batch
    assert (f"{train % batch} of the {train} training images" in said) == (train % batch > train // 10)
    assert len(read_run(tmp_path / "out")[1]) == 2 * (train // batch)  # a line for each step of a short run
    assert run_example(script, *options, "--resume") == 0
    assert run_example(script, *options, "--resume", "--batch", 4 * batch, "--splits" if "moco" in script else "--hidden", 8) == 2
    assert f"--batch was {batch}, now {4 * batch}" in capsys.readouterr().err


@pytest.mark.parametrize("script, n, needed", [("simclr_images", 2, 2), ("moco_images", 10, 16), ("moco_images", 3, 16)])
def test_too_few_pictures_are_an_error_with_the_number_needed(tmp_path, monkeypatch, capsys, script, n, needed):
    monkeypatch.setenv("MINICL_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "few", numbered("", n))
    assert run_example(script, "--size", 32, "--data-dir", tmp_path / "few", "--out", tmp_path / "out") == 2
    assert f"a batch needs {needed} training pictures or more, got {n - 1}" in capsys.readouterr().err


def test_a_run_is_resumed_only_with_the_same_pictures(example, photos, capsys):
    first = read_run(example("--data-dir", photos)[1])
    code, folder = example("--data-dir", photos, "--resume")
    assert code == 0 and read_run(folder)[1] == first[1]
    assert 0 <= first[0]["waiting"] <= 1 and read_run(folder)[0]["waiting"] is None      # nothing was left to train
    write_pictures(photos, ["dog/3.png"], seed=1)
    code, _ = example("--data-dir", photos, "--resume")
    assert code == 2 and "of a run on other data" in capsys.readouterr().err


@SCRIPTS
def test_a_run_stopped_and_resumed_is_the_uninterrupted_one(example, photos, script, monkeypatch):
    options = ("--data-dir", photos, "--epochs", 2)
    whole = read_run(example(*options, script=script, out="whole")[1])
    log = Run.log

    def log_and_press_ctrl_c(run, step, **metrics):
        log(run, step, **metrics)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_press_ctrl_c)
    assert example(*options, script=script)[0] == 130
    monkeypatch.setattr(Run, "log", log)
    code, folder = example(*options, "--resume", script=script)
    result, lines = read_run(folder)
    assert code == 0 and lines == whole[1] and [result[key] for key in ACCURACIES] == [whole[0][key] for key in ACCURACIES]


def test_a_missing_data_dir_is_refused(example, capsys):
    assert example()[0] == 2 and "error: --data-dir: name a folder of pictures" in capsys.readouterr().err


@pytest.mark.parametrize("options, message", [
    (("--size", 40), "argument --size: invalid choice: 40"),
    (("--batch", 100), "expected a batch of 1 to 59, the number of items"), (("--data-dir", "nowhere"), "there is no such folder")])
def test_an_invalid_option_is_one_line_and_leaves_no_run(example, photos, capsys, options, message):
    code, folder = example("--data-dir", photos, *options)
    error = capsys.readouterr().err
    assert code == 2 and message in error.splitlines()[-1] and not folder.exists()


def test_plots_are_drawn_for_class_names_with_special_characters(example, tmp_path, monkeypatch):
    monkeypatch.setattr(viz, "Figure", pytest.importorskip("matplotlib.figure").Figure)
    write_pictures(tmp_path / "photos", [*numbered("5$ & 3$ _", 30), *numbered("Hündchen", 30)])
    code, folder = example("--data-dir", tmp_path / "photos")
    assert code == 0 and {path.stem for path in folder.glob("*.png")} == {"views", "curves", "map", "neighbours"}


def test_2000_mixed_files_beat_chance_in_three_epochs(example, tmp_path):
    """The files are JPEG and PNG pictures of ten shapes, in many sizes and aspect ratios."""
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 10
    for k, (pixels, label) in enumerate(zip(draw_shapes(labels, rng), labels)):
        path = tmp_path / "shapes" / list(SHAPES)[label] / f"{k}.{('jpg', 'png')[k % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = rng.integers(32, 64, 2)
        side = max(width, height)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
        picture.crop((0, 0, width, height)).save(path, **{"compress_level": 1} if k % 2 else {})
    code, folder = example("--data-dir", tmp_path / "shapes", "--batch", 100, "--width", 4, "--dim", 32, "--epochs", 3)
    result, log = read_run(folder)
    assert code == 0 and len(log) == 54 and result["bound_nats"] > 0.5 and result["data"] == "shapes"


@SCRIPTS
def test_the_commands_in_the_docstring_run(example, photos, capsys, script):
    text = (EXAMPLES / f"{script}.py").read_text().split('"""')[1]
    commands = [shlex.split(line.split("#")[0]) for line in text.splitlines() if line.strip().startswith("python")]
    assert len(commands) >= 2
    for k, (_, path, *options) in enumerate(commands):
        assert path == f"examples/{script}.py"
        small = ("--data-dir", photos, "--backend", "numpy", *SMALL, *(MOCO if script == "moco_images" else ()),
                 *(("--chunk", 10) if "--chunk" in options else ()))
        assert example(*options, *small, out=f"command {k}", script=script)[0] == 0, capsys.readouterr().err
