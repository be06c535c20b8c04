"""graphs.py make FOLDER SIZE FORMATS NAME...: exports networks as NAME.pt2, NAME.onnx (by the exporter that traces), NAME.dynamo.onnx (by the newer
one), NAME.pt (traced) and NAME.script.pt, as FORMATS (comma-separated) says, with an input NAME.x, its output NAME.y, and counts.
graphs.py train FOLDER SIZE FORMATS NAME...: exports networks as `make` does, in evaluation; then trains each in float64 and prints its losses.
graphs.py run FOLDER FILE...: runs each file, NAME.….onnx or NAME.….pt, and prints its largest relative difference from the output; ONNX files are
checked."""

import copy
import json
import sys
from pathlib import Path

import numpy
import torch
import torchvision


# Steps of training whose losses are compared.
STEPS = 3


@torch.no_grad()
def settle(model):
    """Gives batch norms running statistics and affine values of sane size, so that outputs neither vanish nor blow up."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda like, low, high: low + (high - low) * torch.rand(like.shape, generator=generator)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(draw(module.running_mean, -0.2, 0.2))
            module.running_var.copy_(draw(module.running_var, 0.5, 1.5))
            if module.affine:
                module.weight.data.copy_(draw(module.weight, 0.7, 1.3))
                module.bias.data.copy_(draw(module.bias, -0.2, 0.2))


def count(model, x):
    """Convolutions, and multiply-accumulates of these and of fully connected layers, of one forward pass."""
    convolutions, macs = 0, 0

    def hook(module, _, output):
        nonlocal convolutions, macs
        convolutions += isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
        macs += output.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    output = model(x)
    for handle in hooks:
        handle.remove()
    return [convolutions, macs], output


def build(name):
    if name in torchvision.models.list_models(torchvision.models):
        return torchvision.models.get_model(name, weights=None)
    import timm

    return timm.create_model(name)


def onnx(model, x, path, dynamo):
    preserve = torch.onnx.TrainingMode.PRESERVE
    more = {"dynamo": True} if dynamo else {"dynamo": False, "training": preserve, "do_constant_folding": False}
    torch.onnx.export(model, (x,), path, input_names=["images"], output_names=["logits"], verbose=False, **more)


@torch.no_grad()
def make(folder, size, formats, names):
    facts = {}
    for name in names:
        torch.manual_seed(0)
        model = build(name).eval()
        settle(model)
        x = torch.randn(1, 3, size, size)
        before, output = count(model, x)
        if "pt2" in formats:
            torch.export.save(torch.export.export(model, (x,)), folder / f"{name}.pt2")
        if "onnx" in formats:
            onnx(model, x, folder / f"{name}.onnx", dynamo=False)
        if "dynamo.onnx" in formats:
            onnx(model, x, folder / f"{name}.dynamo.onnx", dynamo=True)
        if "pt" in formats:
            torch.jit.trace(model, x).save(folder / f"{name}.pt")
        if "script.pt" in formats:
            torch.jit.script(model).save(folder / f"{name}.script.pt")
        x.numpy().tofile(folder / f"{name}.x")
        output.numpy().tofile(folder / f"{name}.y")
        facts[name] = {"before": before, "shape": list(x.shape)}
        if hasattr(model, "stages") or hasattr(model, "blocks"):
            from timm.utils import reparameterize_model

            facts[name]["after"] = count(reparameterize_model(copy.deepcopy(model)), x)[0]
    # Exporters print too; the facts are the last line.
    print("\n" + json.dumps(facts))


def batch(step, size, classes):
    """The images and labels of a step; tests/common/steps.rs has the same."""
    number = lambda count: torch.arange(count, dtype=torch.float64) + step % 2 * 7919
    x = (number(4 * 3 * size * size) * 12.9898).sin().reshape(4, 3, size, size) * 2.0
    return x, (number(4) * 3.7).long() % classes


def train(folder, size, formats, names):
    make(folder, size, formats, names)
    losses = {}
    for name in names:
        torch.manual_seed(0)
        model = build(name)
        settle(model)
        model = model.double().train()
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        losses[name] = []
        for step in range(STEPS):
            x, labels = batch(step, size, 1000)
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses[name].append(loss.item())
    print("\n" + json.dumps(losses))


def run(folder, files):
    errors = {}
    for file in files:
        name = file.split(".")[0]
        y = numpy.fromfile(folder / f"{name}.y", numpy.float32)
        size = round((numpy.fromfile(folder / f"{name}.x", numpy.float32).size / 3) ** 0.5)
        x = numpy.fromfile(folder / f"{name}.x", numpy.float32).reshape(1, 3, size, size)
        if file.endswith(".onnx"):
            import onnx
            import onnxruntime

            onnx.checker.check_model(folder / file)
            session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
            output = session.run(None, {"images": x})[0]
        else:
            output = torch.jit.load(folder / file)(torch.from_numpy(x)).detach().numpy()
        errors[file] = float(numpy.abs(output.reshape(-1) - y).max() / numpy.abs(y).max())
    print(json.dumps(errors))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode in ("make", "train"):
        import logging
        import warnings

        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        {"make": make, "train": train}[mode](folder, int(sys.argv[3]), sys.argv[4].split(","), sys.argv[5:])
    else:
        run(folder, sys.argv[3:])
