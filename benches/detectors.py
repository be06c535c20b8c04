"""Detectors of ultralytics folded by foldconv: convolutions and multiply-accumulates, beside those after the package's own `fuse`, and the error of
the folded ONNX file in onnxruntime.

`make bench-detectors` runs it. Every network is built from its description, with random weights and batch norms of sane statistics, exported by
torch.export in evaluation, and folded by `foldconv fold` to ONNX. The package is not one of `make setup-peer`: `pip install ultralytics` in .venv.
"""

import argparse
import copy
import json
import logging
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

import common
from graphs import graphs, millions, table

NETWORKS = ["yolov9t", "yolov9c", "yolov8n", "yolo11n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo12n"]


def tensors(outputs):
    """The tensors of nested lists and dictionaries, in their order."""
    if torch.is_tensor(outputs):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else []
    return [tensor for item in items for tensor in tensors(item)]


def build(name):
    from ultralytics.nn import tasks

    kinds = {"seg": tasks.SegmentationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}
    model = kinds.get(name.partition("-")[2], tasks.DetectionModel)(f"{name}.yaml", verbose=False).eval()
    graphs.settle(model)
    return model


@torch.no_grad()
def row(args, name, folder):
    import onnxruntime

    torch.manual_seed(0)
    model, x = build(name), torch.randn(1, 3, args.size, args.size)
    # The first run computes the anchors.
    model(x)
    expected = tensors(model(x))
    path, out = folder / f"{name}.pt2", folder / f"{name}.onnx"
    torch.export.save(torch.export.export(model, (x,), strict=False), path)
    done = subprocess.run([args.foldconv, "--json", "fold", path, "-o", out], capture_output=True, text=True)
    if done.returncode:
        return f"| {name} | {done.stderr.strip().splitlines()[-1]} | | | | |", False
    document = json.loads(done.stdout)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # A tensor that is returned twice is one result of the exported network for each.
    assert len(found) == len(expected), (len(found), len(expected))
    error = max(graphs.difference(a.numpy(), b) for a, b in zip(expected, found))
    theirs = graphs.count(copy.deepcopy(model).fuse(verbose=False), x)[0]
    before, after = document["before"], document["after"]
    macs = [millions(macs) for macs in (before["macs"], after["macs"], theirs[1])]
    cells = [name, f"{before['convolutions']} → {after['convolutions']}", theirs[0], f"{macs[0]} → {macs[1]}", macs[2], f"{error:.0e}"]
    return "| " + " | ".join(map(str, cells)) + " |", error < 1e-5 and after["convolutions"] <= theirs[0] and after["macs"] <= theirs[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foldconv", type=Path, default=Path("target/release/foldconv"), help="the binary")
    parser.add_argument("--size", type=common.positive, default=128, help="height and width of the images")
    parser.add_argument("names", nargs="*", help="networks of ultralytics [default: all of the table]")
    args = parser.parse_args()
    args.foldconv = common.binary(args.foldconv)
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as settings:
        os.environ.update(YOLO_CONFIG_DIR=settings, YOLO_OFFLINE="true")
        try:
            import ultralytics
        except ImportError:
            common.fail("ultralytics is missing: .venv/bin/python -m pip install ultralytics", 2)
        columns = "convolutions; ultralytics'; MACs, millions; ultralytics'; error".split("; ")
        worse = table(columns, args.names or NETWORKS, lambda name, folder: row(args, name, folder))
    print(f"\nImages of {args.size}x{args.size}, torch {torch.__version__}, ultralytics {ultralytics.__version__}")
    print(f"As good as ultralytics', and equal to 1e-5: {worse}")


if __name__ == "__main__":
    main()
