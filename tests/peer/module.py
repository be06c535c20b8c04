"""Whether TorchScript files are modules like any other. `module.py FOLDER SIZE FILE...` prints {file: facts} as JSON: the names of
`state_dict()` and of `parameters()`, how far the logits in float64 and float16 are from those in float32 over the largest, in which type
they come, the parameters that a backward pass gives no finite gradient, and the constants that keep their device."""

import json
import sys

import torch

folder, size, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(2)
torch.manual_seed(0)


def facts(path):
    model, x = torch.jit.load(path), torch.randn(3, 3, size, size)
    y = model(x)
    y.square().sum().backward()
    told = {
        "state_dict": sorted(model.state_dict()),
        "parameters": sorted(name for name, _ in model.named_parameters()),
        "without_gradient": [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()],
    }
    for dtype in (torch.float64, torch.float16):
        with torch.no_grad():
            other = torch.jit.load(path).to(dtype)(x.to(dtype))
        told[str(other.dtype)] = float((other - y.detach()).abs().max() / y.detach().abs().max())
    # The nodes are gone with their graph.
    graph = model.inlined_graph
    told["stays_behind"] = [str(node).strip() for node in graph.findAllNodes("prim::Constant") if stays_behind(node)]
    return told


def stays_behind(node):
    """Whether a constant keeps its device where the module goes to another one."""
    kind = str(node.output().type())
    return kind == "Device" or (kind == "Tensor" and node.hasAttribute("value") and node.t("value").dim() > 0)


print(json.dumps({file: facts(f"{folder}/{file}") for file in files}))
