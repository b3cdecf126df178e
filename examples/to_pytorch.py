"""An encoder of images as a PyTorch module, and its weights back.

    python examples/to_pytorch.py runs/simclr_images encoder.pt          # for PyTorch, below
    python examples/to_pytorch.py encoder.pt encoder.safetensors         # back, for minicl.load

    from to_pytorch import read
    model = read("encoder.pt")                               # a torch.nn.Module: (N, C, H, W) in [0, 1] -> (N, d)

The weights have minicl's names without "steps". Their layout differs:

    layer     minicl                    PyTorch
    Conv2d    (kh, kw, C, K)            (K, C, kh, kw)
    Linear    (in, out)                 (out, in)
    images    (N, H, W, C)              (N, C, H, W)

After training in PyTorch save {"state_dict": model.state_dict(), "minicl": ...} with the "minicl" of the file you read.
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from export import plain, save_safetensors

import minicl
from minicl import nn, ops
from minicl.checkpoint import CheckpointError
from minicl.data import DataError
from minicl.evaluate import encode
from minicl.files import write_atomically
from minicl.nn.resnet import BasicBlock, Residue
from minicl.nn.spec import build, spec_of
from minicl.options import folder
from minicl.run import RunError, command

try:
    import torch
    from torch.nn import functional as F
except ImportError as error:
    print(f"error: PyTorch is not installed ({error}): pip install torch", file=sys.stderr)
    sys.exit(2)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("source", type=folder, help="folder of a run, or a .pt file to convert back")
    parser.add_argument("file", type=folder, help="file to write: a .pt file, or a .safetensors file to convert back")
    parser.add_argument("--model", help="name of the model, if the run trained several")
    args = parser.parse_args()
    kinds = Path(args.source).suffix, Path(args.file).suffix
    if kinds == (".pt", ".safetensors"):
        encoder, meta = read_minicl(args.source)
        save_safetensors(args.file, encoder, meta)
    elif kinds[1] == ".pt":
        trained = minicl.load(args.source, model=args.model)
        meta = {key: getattr(trained, key) for key in ("name", "config", "data", "step", "total")}
        save(args.file, plain(trained.encoder), meta)
    else:
        parser.error("expected a run and a .pt file, or a .pt file and a .safetensors file")
    print(f"wrote {args.file}")


# ---------------------------------------------------------------- weights

AXES = {nn.Conv2d: (3, 2, 0, 1), nn.Linear: (1, 0)}          # of a weight in PyTorch, by minicl's


def in_pytorch(name):
    """steps.0.blocks.1.steps.0.weight -> 0.blocks.1.0.weight: torch.nn.Sequential has its parts without a name."""
    return f".{name}".replace(".steps.", ".")[1:]


def to_state_dict(module):
    """{name: array}: the state of a minicl Module, with PyTorch's names and layout."""
    axes = {f"{name}.weight": AXES[type(layer)] for name, layer in module.named_parts() if type(layer) in AXES}
    return {in_pytorch(name): np.ascontiguousarray(array.transpose(axes[name])) if name in axes else array
            for name, array in module.state_dict().items()}


def from_state_dict(module, state):
    """Load a PyTorch state dict into a minicl Module: half precision becomes float32, and the prefixes of DataParallel and
    compile are dropped. Raises ValueError, and loads nothing, if something does not fit."""
    while state and (prefix := next((p for p in ("module.", "_orig_mod.") if all(n.startswith(p) for n in state)), None)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    state = {name: value.float() if value.is_floating_point() and value.dtype != torch.float64 else value
             for name, value in state.items()}
    if any(value.dtype == torch.float64 for value in state.values()):
        module.astype("float64")
    axes = {f"{name}.weight": AXES[type(layer)] for name, layer in module.named_parts() if type(layer) in AXES}
    names = {in_pytorch(name): name for name in module.state_dict()}
    arrays = {names.get(name, name): np.asarray(value) for name, value in state.items()
              if not name.endswith("num_batches_tracked")}
    for name in axes.keys() & arrays.keys():
        if arrays[name].ndim == len(axes[name]):
            arrays[name] = arrays[name].transpose(np.argsort(axes[name]))
    module.load_state_dict(arrays)


# ---------------------------------------------------------------- files

def save(path, encoder, meta):
    """Write {"state_dict", "minicl"} after testing that the PyTorch model returns the encoder's features."""
    try:
        spec = spec_of(encoder)
        model = torch_model(encoder).eval()
    except (KeyError, ValueError) as error:
        raise DataError(f"cannot export a {type(encoder).__name__} to PyTorch: {error} has no equivalent here") from error
    state = {name: torch.tensor(array) for name, array in to_state_dict(encoder).items()}
    model.load_state_dict(state)
    shape = next(module.image_shape for module in encoder.modules() if "image_shape" in vars(module))
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    expected = encode(encoder, images, np)
    with torch.no_grad():
        got = model(torch.tensor(images).permute(0, 3, 1, 2) / 255).numpy()
    if not np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max():
        raise RunError("the PyTorch model gives other features than the encoder; nothing was written")
    data = io.BytesIO()
    torch.save({"state_dict": state, "minicl": json.dumps({**meta, "models": {"encoder": spec}})}, data)
    write_atomically(path, lambda file: file.write(data.getvalue()))


def read_minicl(path):
    """(encoder, meta): the minicl Module of a .pt file."""
    try:
        whole = io.BytesIO()                                 # torch.load() verifies no checksums; read() does
        with zipfile.ZipFile(path) as members, zipfile.ZipFile(whole, "w") as copy:
            for member in members.infolist():
                copy.writestr(member.filename, members.read(member))
        whole.seek(0)
        file = torch.load(whole, weights_only=True)
        meta = json.loads(file["minicl"])
        encoder = build(meta.pop("models")["encoder"])
        from_state_dict(encoder, file["state_dict"])
    except Exception as error:                               # what torch.load raises is not documented
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path} is not a file of this script, or was damaged ({reason})") from error
    return encoder.eval(), meta


def read(path):
    """The torch.nn.Module of a .pt file, in evaluation mode."""
    encoder, _ = read_minicl(path)
    model = torch_model(encoder)
    model.load_state_dict({name: torch.tensor(array) for name, array in to_state_dict(encoder).items()})
    return model.eval()


# ---------------------------------------------------------------- models

def torch_model(m):
    """The PyTorch module with the structure of a minicl Module, and other weights. Raises KeyError if none is known."""
    return torch.nn.ReLU() if m is ops.relu else PEERS[type(m)](m)


class BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """Over all axes but the second, then relu where minicl's layer has it."""

    def __init__(self, m):
        super().__init__(len(m.weight.data), eps=m.eps, momentum=m.momentum)
        self.relu = m.relu

    def _check_input_dim(self, x):
        """Any number of axes."""

    def forward(self, x):
        y = super().forward(x)
        return F.relu(y) if self.relu else y


class Parts(torch.nn.Module):
    """The attributes of a minicl Module that are Modules, lists or dicts of them, under their names."""

    def __init__(self, m):
        super().__init__()
        for name, value in vars(m).items():
            if isinstance(value, nn.Module):
                setattr(self, name, torch_model(value))
            elif isinstance(value, list):
                setattr(self, name, torch.nn.Sequential(*map(torch_model, value)))
            elif isinstance(value, dict):
                setattr(self, name, torch.nn.ModuleDict({str(key): torch_model(part) for key, part in value.items()}))


class MLP(Parts):
    def __init__(self, m):
        super().__init__(m)
        H, W, C = m.image_shape
        self.shape = (C, H, W)

    def forward(self, x):
        if x.shape[1:] != self.shape:
            raise ValueError(f"expected images (N, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        x = x.permute(0, 2, 3, 1).flatten(1)                                 # minicl's order of pixels
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class ConvNet(Parts):
    def __init__(self, m):
        super().__init__(m)
        self.grid = m.grid

    def forward(self, x):
        cells = F.adaptive_avg_pool2d(self.blocks(x), self.grid)             # (N, C, grid, grid)
        return cells.permute(0, 2, 3, 1).flatten(1)


class Block(Parts):
    def forward(self, x):
        y = (self.shortcut(x) if hasattr(self, "shortcut") else x) + self.second(self.first(x))
        return F.relu(y)


class ResidualBlock(Parts):
    def forward(self, x):
        return x + self.second(self.first(x))


class ResNet18(Parts):
    def forward(self, x):
        return self.blocks(self.stem(x)).mean(dim=(2, 3))


class ResNet9(Parts):
    def forward(self, x):
        x = self.stem(x)
        for k, layer in enumerate(self.down):
            x = F.max_pool2d(layer(x), 2)
            x = self.residues[str(k)](x) if str(k) in self.residues else x
        return x.mean(dim=(2, 3))


PEERS = {
    nn.Conv2d: lambda m: torch.nn.Conv2d(*m.weight.shape[2:], m.weight.shape[:2], m.stride, m.padding,
                                         bias=m.bias is not None),
    nn.Linear: lambda m: torch.nn.Linear(*m.weight.shape, bias=m.bias is not None),
    nn.Sequential: lambda m: torch.nn.Sequential(*map(torch_model, m.steps)),
    nn.BatchNorm: BatchNorm, nn.MLP: MLP, nn.ConvNet: ConvNet, nn.ResNet18: ResNet18, nn.ResNet9: ResNet9, BasicBlock: Block,
    Residue: ResidualBlock}


if __name__ == "__main__":
    command(main, alone=True)
