"""Multiply-accumulates of exported networks as PyTorch counts them. `flops.py CHANNELS SIZE FILE...` takes TorchScript files and prints
{file: multiply-accumulates of one image} as JSON."""

import json
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

channels, size, files = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
torch.set_num_threads(1)
counts = {}
for file in files:
    module = torch.jit.load(file)
    image = torch.zeros(1, channels, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    # A multiplication and an addition each.
    counts[file] = counter.get_total_flops() / 2
print(json.dumps(counts))
