"""Networks of torchvision with random weights and running statistics, as torch.save writes them in both forms; four images, and
PyTorch's logits. `make.py FOLDER NAME...` leaves NAME.pth, NAME.legacy.pth, NAME.x (raw float32) and NAME.y."""

import sys

import numpy
import torch
import torchvision

folder, names = sys.argv[1], sys.argv[2:]
torch.manual_seed(0)
for name in names:
    model = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        x = torch.randn(4, 3, 224, 224)
        y = model(x)
    torch.save(model.state_dict(), f"{folder}/{name}.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}},
               f"{folder}/{name}.legacy.pth", _use_new_zipfile_serialization=False)
    x.numpy().astype(numpy.float32).tofile(f"{folder}/{name}.x")
    y.numpy().astype(numpy.float32).tofile(f"{folder}/{name}.y")
