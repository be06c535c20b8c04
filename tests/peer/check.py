"""What exported models compute in PyTorch and in onnxruntime, against logits. `check.py FOLDER CLASSES SIZE NAME...` takes
NAME.FORM.FORMAT for the forms `same`, `identity` and `fused` (state dicts: pytorch, safetensors) and `expanded` and `compact` (networks:
torchscript, onnx), those that are there, and prints {file: largest difference over the largest logit} as JSON."""

import json
import os
import sys

import numpy
import onnxruntime
import torch

folder, classes, size, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
torch.set_num_threads(2)


def read(path, *shape):
    return torch.from_numpy(numpy.fromfile(path, dtype=numpy.float32).reshape(*shape))


def load(path):
    """A state dict."""
    if path.endswith(".pytorch"):
        return torch.load(path, weights_only=True)
    from safetensors.torch import load_file

    return load_file(path)


def fused(model, state):
    """The model with biases in its convolutions and no batch norms, which is what the fused state dict is of."""
    for name, module in list(model.named_modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.BatchNorm2d):
                setattr(module, child, torch.nn.Identity())
            elif isinstance(layer, torch.nn.Conv2d) and layer.bias is None:
                layer.bias = torch.nn.Parameter(torch.zeros(layer.out_channels))
    model.load_state_dict(state, strict=True)
    return model


def of_state(name, form, path):
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    state = load(path)
    if form == "fused":
        fused(model, state)
    else:
        model.load_state_dict(state, strict=True)
    return model.eval()


def run(name, form, kind, path, x):
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    model = torch.jit.load(path) if kind == "torchscript" else of_state(name, form, path)
    with torch.no_grad():
        return model(x)


errors = {}
for name in names:
    x, y = read(f"{folder}/{name}.x", -1, 3, size, size), read(f"{folder}/{name}.y", -1, classes)
    for file in sorted(os.listdir(folder)):
        if not file.startswith(f"{name}."):
            continue
        parts = file[len(name) + 1:].split(".")
        if len(parts) != 2 or parts[0] not in ("same", "identity", "fused", "expanded", "compact"):
            continue
        # Any batch: all, and one by itself.
        for n in (len(x), 1):
            error = (run(name, *parts, f"{folder}/{file}", x[:n]) - y[:n]).abs().max() / y.abs().max()
            errors[file] = max(errors.get(file, 0.0), float(error))
print(json.dumps(errors))
