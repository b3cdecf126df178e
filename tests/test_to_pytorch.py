"""examples/to_pytorch.py gives the same features in PyTorch, and weights trained there convert back."""

import itertools
import zipfile

import numpy as np
import pytest
from example_runs import run_example
from test_export import ENCODERS, run_of, seen, shape_of

import minicl
from minicl import nn
from minicl.checkpoint import CheckpointError
from minicl.data import DataError
from minicl.evaluate import encode
from minicl.methods import SimCLR

torch = pytest.importorskip("torch", reason="needs PyTorch")
import to_pytorch  # noqa: E402


@pytest.mark.parametrize("make", [make for name, make in ENCODERS.items() if name != "own"], ids=[n for n in ENCODERS if n != "own"])
def test_features_are_the_same_and_weights_trained_there_convert_back(make, rng, tmp_path):
    encoder = seen(make(rng), rng)
    to_pytorch.save(tmp_path / "e.pt", encoder, {"name": "a test"})
    model = to_pytorch.read(tmp_path / "e.pt")
    images = rng.integers(0, 256, (4, *shape_of(encoder)), dtype=np.uint8)
    x = torch.tensor(images).permute(0, 3, 1, 2) / 255

    def agree(encoder):
        expected = encode(encoder, images, np)
        np.testing.assert_allclose(model.eval()(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    agree(encoder)

    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    file = torch.load(tmp_path / "e.pt", weights_only=True)
    torch.save({**file, "state_dict": model.state_dict()}, tmp_path / "e.pt")
    back, meta = to_pytorch.read_minicl(tmp_path / "e.pt")
    assert meta == {"name": "a test"} and np.abs(encode(back, images, np) - encode(encoder, images, np)).max() > 1e-5
    agree(back)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-6)], ids=str)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_weights_of_another_precision_or_of_a_wrapped_model_convert_back(dtype, tolerance, prefix, rng, tmp_path):
    encoder = nn.MLP((2, 2, 1), (3, 4), rng=rng).eval()
    to_pytorch.save(tmp_path / "e.pt", encoder, {})
    file = torch.load(tmp_path / "e.pt", weights_only=True)
    file["state_dict"] = {prefix + name: value.to(dtype) for name, value in file["state_dict"].items()}
    torch.save(file, tmp_path / "e.pt")
    back, _ = to_pytorch.read_minicl(tmp_path / "e.pt")
    assert {p.data.dtype.name for p in back.parameters()} == {"float64" if dtype == torch.float64 else "float32"}
    for name, array in encoder.state_dict().items():
        np.testing.assert_allclose(back.state_dict()[name], array, atol=tolerance)


def test_the_script_converts_a_run_and_back(rng, tmp_path):
    pytest.importorskip("safetensors")
    run = run_of(tmp_path / "run", SimCLR(seen(nn.ConvNet((8, 8, 1), (4, 8), rng=rng), rng), nn.Sequential()))
    assert run_example("to_pytorch", run, tmp_path / "e.pt") == 0
    assert run_example("to_pytorch", tmp_path / "e.pt", tmp_path / "e.safetensors") == 0
    images = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_array_equal(minicl.load(tmp_path / "e.safetensors").encode(images), minicl.load(run).encode(images))


def test_a_model_without_an_equivalent_and_a_damaged_file_are_one_line(rng, tmp_path):
    with pytest.raises(DataError, match=".* has no equivalent here"):
        to_pytorch.save(tmp_path / "e.pt", ENCODERS["own"](rng), {})
    assert not list(tmp_path.iterdir())
    to_pytorch.save(tmp_path / "e.pt", nn.MLP((2, 2, 1), (3, 4), rng=rng), {})
    file = torch.load(tmp_path / "e.pt", weights_only=True)
    for change in ({}, {"minicl": "{}"}, {"state_dict": {}}, {"state_dict": {**file["state_dict"], "layers.0.weight": torch.ones(2)}}):
        torch.save({**file, **change} if change else [1], tmp_path / "e.pt")
        with pytest.raises(CheckpointError, match="e.pt is not a file of this script, or was damaged") as caught:
            to_pytorch.read(tmp_path / "e.pt")
        assert "\n" not in str(caught.value)


def test_a_file_with_a_changed_bit_is_refused_or_gives_the_same_weights(rng, tmp_path):
    encoder = seen(nn.ConvNet((8, 8, 1), (4, 8), rng=rng), rng)
    to_pytorch.save(tmp_path / "e.pt", encoder, {"name": "a test"})
    content = bytearray((tmp_path / "e.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "e.pt") as file:
        start = file.start_dir
    refused = 0
    for place, bit in itertools.chain(zip(rng.integers(0, start, 100), itertools.cycle(range(8))),
                                      ((place, 4) for place in range(start, len(content)))):
        content[place] ^= 1 << bit
        (tmp_path / "e.pt").write_bytes(content)
        content[place] ^= 1 << bit
        try:
            back, _ = to_pytorch.read_minicl(tmp_path / "e.pt")
        except CheckpointError:
            refused += 1
        else:
            for name, array in encoder.state_dict().items():
                np.testing.assert_array_equal(back.state_dict()[name], array)
    assert refused > 50
