"""init.py FOLDER CLASSES: leaves a ResNet-18 of torchvision with statistics as after training in FOLDER, as net.pt2, net.onnx, net.pth and
net.pt, another eps of its batch norms as eps.pt, and an input with its logits as io.safetensors."""

import sys
import warnings
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
folder, classes = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
net = torchvision.models.resnet18(num_classes=classes).eval()
with torch.no_grad():
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 64, 64)
    logits = net(x)
batch = torch.export.Dim("batch", min=1, max=64)
exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
torch.export.save(exported, folder / "net.pt2")
torch.onnx.export(net, (x,), folder / "net.onnx", dynamo=True, dynamic_shapes=({0: batch},), external_data=False)
torch.save(net.state_dict(), folder / "net.pth")
torch.jit.trace(net, x).save(folder / "net.pt")
for module in net.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.eps = 1e-3
torch.jit.trace(net, x).save(folder / "eps.pt")
save_file({"x": x, "logits": logits}, folder / "io.safetensors")
