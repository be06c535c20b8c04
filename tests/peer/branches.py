"""branches.py FILE: exports a small network whose linear regions use every rule of the fold, and parts that stay apart."""

import io
import json
import sys
import zipfile

import torch
from torch import nn


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        norm = lambda channels: nn.BatchNorm2d(channels)
        self.square = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4))
        self.point = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), norm(4))
        self.same = norm(4)
        self.row = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False)
        self.column = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        # A composition of these would be larger than both, or wrong on the border.
        self.narrow = nn.Conv2d(4, 1, 1, bias=False)
        self.wide = nn.Conv2d(1, 4, 1)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        # The mean over windows, and halves of a strided map side by side, shuffled.
        self.pool = nn.AvgPool2d(2)
        self.before = nn.Conv2d(4, 4, 1, bias=False)
        self.left = nn.Conv2d(4, 2, 3, stride=2, padding=1)
        self.right = nn.Conv2d(4, 2, 1, stride=2)
        self.after = nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        x = self.square(x) + self.point(x) + self.same(x) + self.column(self.row(x)) - self.scale * self.dilated(x)
        x = torch.relu(x)
        x = torch.relu(self.wide(self.narrow(x)))
        x = torch.relu(self.second(self.first(x)))
        x = torch.relu(self.pool(self.before(x)) * 2 + 1)
        n, c, h, w = x.shape
        y = torch.cat([self.left(x), self.right(x)], 1)
        y = y.view(y.shape[0], 2, 2, y.shape[2], y.shape[3]).transpose(1, 2).flatten(1, 2)
        y = torch.relu(self.after(y))
        return self.last(y.mean((2, 3)))


torch.manual_seed(0)
model = Branches().eval()
with torch.no_grad():
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
example = torch.randn(2, 4, 13, 11)
program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
saved = io.BytesIO()
torch.export.save(program, saved)
# Without the lines of this file, which name the machine's folders, and without the example.
with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(sys.argv[1], "w") as out:
    for name in archive.namelist():
        content = archive.read(name)
        if name.endswith("models/model.json"):
            graph = json.loads(content)
            for node in graph["graph_module"]["graph"]["nodes"]:
                node["metadata"].pop("stack_trace", None)
            content = json.dumps(graph, separators=(",", ":"))
        if "sample_inputs" not in name:
            out.writestr(name, content)
