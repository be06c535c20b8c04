"""Seconds to read ResNet-50's file (torch.save, 98 MB) into a network that is there: foldconv beside PyTorch, in turns.

`make bench-peer` runs it. PyTorch: torch.load(weights_only=True) and load_state_dict. foldconv: `bench import`, which measures the
same work inside of its process. The file is in the page cache for both.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torchvision


def pytorch(model, path):
    clock = time.perf_counter()
    model.load_state_dict(torch.load(path, weights_only=True))
    return time.perf_counter() - clock


def foldconv(binary, path):
    command = [binary, "bench", "import", path, "--net", "resnet50", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foldconv", default="target/release/foldconv", help="the binary")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds")
    args = parser.parse_args()
    model = torchvision.models.resnet50(weights=None)
    with tempfile.TemporaryDirectory() as folder:
        for form, zipped in [("zip", True), ("legacy", False)]:
            path = str(Path(folder) / f"{form}.pth")
            torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
            pytorch(model, path), foldconv(args.foldconv, path)
            rows = [(pytorch(model, path), foldconv(args.foldconv, path)) for _ in range(args.rounds)]
            theirs, ours = (statistics.median(times) for times in zip(*rows))
            ratio = statistics.median(a / b for a, b in rows)
            print(f"resnet50, {form}: PyTorch {1e3 * theirs:.0f} ms, foldconv {1e3 * ours:.0f} ms, "
                  f"PyTorch / foldconv {ratio:.2f} (medians of {args.rounds} interleaved rounds, torch {torch.__version__})")


if __name__ == "__main__":
    main()
