"""examples/finetune.py: three ways to learn from few labels; frozen parts stay, and the run is left unchanged."""

import functools
import json
import types

import numpy as np
import pytest
from example_runs import run_example
from finetune import WAYS, changed_fields, data_of, fit, take_name, three_ways

import minicl
from minicl import nn, viz
from minicl.data import ImageData, digits, generate_digits
from minicl.evaluate import state_hash

SMALL = ("--labels", 1, 5, "--seeds", 2, "--steps", 10, "--batch", 20)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A SimCLR run of three epochs on a few digits."""
    folder = tmp_path_factory.mktemp("runs") / "simclr_mnist"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 200, 60))
        patch.setattr(viz, "Figure", None)
        assert run_example("simclr_mnist", "--data", "digits", "--epochs", 3, "--batch", 40, "--out", folder) == 0
    return folder


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, run_folder):
    for path in run_folder.glob("few_labels*"):
        path.unlink()
    monkeypatch.setattr(digits, "generate_digits", functools.partial(digits.generate_digits, 200, 60))


def test_the_script_ends_with_a_table_and_leaves_the_run_unchanged_on_either_backend(run_folder, capsys, xp):
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    assert run_example("finetune", run_folder, *SMALL, "--backend", "numpy" if xp is np else "cupy") == 0
    shown = capsys.readouterr().out
    assert "   1 label a class  probe" in shown and "   5 labels a class  probe" in shown
    found = json.loads((run_folder / "few_labels.json").read_text())
    assert found["labels"] == ["1", "5"] and found["changed"] == [] and "warning" not in shown and all(np.shape(found[way]) == (2, 2) for way in WAYS)
    assert all(0 <= accuracy <= 1 for way in WAYS for row in found[way] for accuracy in row)
    after = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"few_labels.json"} | ({"few_labels.png"} if viz.Figure else set())


def test_a_name_is_taken_once_and_never_through_a_link(tmp_path):
    (tmp_path / "few_labels-2.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "few_labels-3.json").symlink_to(tmp_path / "nothing")
    assert [take_name(tmp_path) for _ in range(3)] == ["few_labels", "few_labels-4", "few_labels-5"]
    assert not (tmp_path / "nothing").exists()


def test_a_second_result_does_not_replace_the_first(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(viz, "Figure", None)
    for options in (("--labels", 5), ("--labels", 1), ("--labels", 2)):
        assert run_example("finetune", run_folder, *SMALL, *options, "--probe") == 0
    found = [json.loads((run_folder / f"few_labels{end}.json").read_text())["labels"] for end in ("", "-2", "-3")]
    assert found == [["5"], ["1"], ["2"]] and "few_labels-3.json is in" in capsys.readouterr().out


def test_the_probe_of_an_exported_encoder_equals_that_of_the_run(run_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors", reason="needs safetensors")
    monkeypatch.setattr(viz, "Figure", None)
    assert run_example("export", run_folder, tmp_path / "encoder.safetensors") == 0
    assert run_example("finetune", run_folder, *SMALL) == 0
    assert run_example("finetune", tmp_path / "encoder.safetensors", *SMALL, "--probe") == 0
    of_run, of_file = (json.loads((folder / "few_labels.json").read_text()) for folder in (run_folder, tmp_path))
    assert of_file == {key: of_run[key] for key in ("data", "changed", "labels", "probe")}
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors", "few_labels.json"}
    assert f"few_labels.json is in {tmp_path}" in capsys.readouterr().out


def test_more_labels_and_pretraining_help(run_folder):
    trained = minicl.load(run_folder)
    args = types.SimpleNamespace(steps=30, batch=32, lr=1e-3, probe=False)
    before = state_hash(trained.encoder)
    few, other, many = (three_ways(trained.encoder, data_of(trained, None), count, seed, np, args)
                        for count, seed in ((1, 0), (1, 1), (15, 0)))
    assert state_hash(trained.encoder) == before and not trained.encoder.training
    assert few.keys() == many.keys() == WAYS.keys()
    assert many["probe"] > few["probe"] and few["probe"] + other["probe"] > few["scratch"] + other["scratch"]


def test_a_frozen_encoder_is_not_trained_and_a_frozen_batch_norm_keeps_its_averages():
    rng = np.random.default_rng(0)
    data = generate_digits(40, 10)
    encoder = nn.ConvNet((28, 28, 1), (4, 8), rng=rng, grid=1)
    classifier = nn.Sequential(encoder, nn.Linear(encoder.features, 10, rng=rng))

    def learn():
        before = classifier.state_dict()
        fit(classifier, data.train_images, data.train_labels, np, rng, lr=1e-2, steps=10, batch=16)
        return {name for name, array in classifier.state_dict().items() if (array != before[name]).any()}

    encoder.freeze()
    assert learn() == {"steps.1.weight", "steps.1.bias"}
    encoder.unfreeze()
    norms = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm)]
    for layer in norms:
        layer.freeze()
    changed = learn()
    assert not [name for name in changed if ".steps.1." in name]         # weights and averages of both layers
    assert {"steps.0.blocks.0.steps.0.weight", "steps.0.blocks.1.steps.0.weight", "steps.1.weight"} <= changed


def test_the_reported_numbers_of_labels_were_used(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setattr(digits, "generate_digits", lambda *_, seed=0: generate_digits(195, 60, seed))
    assert run_example("finetune", run_folder, "--labels", 30, "--seeds", 1, "--steps", 10) == 0
    assert "19 to 20 labels a class  probe" in capsys.readouterr().out
    assert json.loads((run_folder / "few_labels.json").read_text())["labels"] == ["19 to 20"]


@pytest.mark.parametrize("n_train, n_test, changed", [(200, 60, []), (199, 60, ["train_images", "train_labels"]),
                                                      (200, 50, ["test_images", "test_labels"])])
def test_data_other_than_the_runs_are_named(run_folder, capsys, monkeypatch, n_train, n_test, changed):
    monkeypatch.setattr(viz, "Figure", None)
    monkeypatch.setattr(digits, "generate_digits", lambda *_, seed=0: generate_digits(n_train, n_test, seed))
    assert run_example("finetune", run_folder, "--labels", 1, "--seeds", 1, "--steps", 10) == 0
    assert (f"warning: {', '.join(changed)} differ from the run's training data" in capsys.readouterr().out) == bool(changed)
    assert json.loads((run_folder / "few_labels.json").read_text())["changed"] == changed


def test_labels_are_not_compared_where_the_run_had_none(run_folder):
    trained = minicl.load(run_folder)
    data = data_of(trained, None)
    trained.data = {**trained.data, "train_labels": "", "test_labels": "", "class_names": ""}
    assert changed_fields(trained, data) == ["train_labels", "test_labels", "class_names"]
    trained.config = {**trained.config, "labels": False}
    assert changed_fields(trained, data) == []


@pytest.mark.parametrize("change, message", [
    (dict(name="cpc_sequences"), "is a run of cpc_sequences; give --data-dir, a folder with a subfolder for each class"),
    (dict(name="simclr_images", config={}), "give --data-dir"),
])
def test_a_run_with_unknown_data_needs_a_folder(run_folder, change, message):
    trained = minicl.load(run_folder)
    vars(trained).update(change)
    with pytest.raises(minicl.data.DataError, match=message):
        data_of(trained, None)


def test_a_missing_run_or_missing_labels_give_one_line(run_folder, tmp_path, monkeypatch, capsys):
    assert run_example("finetune", tmp_path / "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err
    monkeypatch.setattr(ImageData, "is_labelled", False)
    assert run_example("finetune", run_folder, *SMALL) == 2
    assert "its data has no labels to learn from" in capsys.readouterr().err


# ---------------------------------------------------------------- nn.fresh

def test_fresh_is_the_same_architecture_with_other_weights():
    layer = nn.ConvNet((28, 28, 1), (4, 8), grid=1, rng=np.random.default_rng(0)).eval()
    layer.blocks[0][1].running_mean.data[...] = 3
    one, same, other = (nn.fresh(layer, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.training and not one.blocks[0][1].running_mean.data.any()
    assert {name: array.shape for name, array in one.state_dict().items()} == \
        {name: array.shape for name, array in layer.state_dict().items()}
    assert state_hash(one) == state_hash(same) != state_hash(other)
    weights = [model.blocks[1][0].weight.data for model in (layer, one, other)]
    assert len({w.tobytes() for w in weights}) == 3


def test_fresh_refuses_a_module_with_a_users_function():
    with pytest.raises(ValueError, match="fresh: Sequential: the function"):
        nn.fresh(nn.Sequential(lambda x: x), rng=np.random.default_rng(0))
