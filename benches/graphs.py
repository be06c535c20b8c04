"""Networks of other packages folded by foldconv: convolutions, multiply-accumulates, error and seconds, beside timm's own re-parameterisation.

`make bench-graphs` runs it. Every network is built with random weights and batch norms of sane statistics, exported in three formats, folded by
`foldconv fold`, and, where timm re-parameterises it, by timm.utils.reparameterize_model in this process. Seconds of the fold are those in which the regions are found, folded
and proved; those of the command are all: starting, reading the file, running the network before and after, folding, writing.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import logging
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import torch

import common

spec = importlib.util.spec_from_file_location("graphs", common.ROOT / "tests/peer/graphs.py")
graphs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(graphs)

# One member or more of every family of timm whose modules can be re-parameterised, and all networks that torchvision classifies images with, but for
# the largest ones of a family.
TIMM = """repvgg_a0 repvgg_b1 repvgg_b1g4 repvgg_b3 repvgg_d2se mobileone_s0 mobileone_s1 mobileone_s4 fastvit_t8 fastvit_sa12 fastvit_ma36 fastvit_mci0
repvit_m0_9 repvit_m1_5 repvit_m2_3 repghostnet_050 repghostnet_200 levit_128 efficientvit_m0 tiny_vit_5m_224 mobilenetv4_conv_small resnet50 convnext_atto
efficientnet_lite0""".split()
TORCHVISION = """alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mobilenet_v2 mobilenet_v3_small
mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_t vgg11 vgg11_bn
vit_b_16 wide_resnet50_2 maxvit_t""".split()
# Networks that take no other size, or whose pooling PyTorch's exporter of ONNX refuses at another one.
SIZES = {"alexnet": 224, "vgg11": 224, "vgg11_bn": 224, "vit_b_16": 224, "maxvit_t": 224, "levit_128": 224, "efficientvit_m0": 224, "tiny_vit_5m_224": 224, "inception_v3": 128, "swin_t": 224}


def export(model, x, path):
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(model, (x,)), path)
    elif path.suffix == ".onnx":
        graphs.onnx(model, x, path, dynamo=False)
    else:
        torch.jit.trace(model, x).save(path)


def fold(args, path, x, rounds):
    """The document of a fold, and the seconds of the fold and of the whole command."""
    out = path.with_suffix(".folded.safetensors" if path.suffix == ".pt2" else ".folded" + path.suffix)
    command = [args.foldconv, "--json", "--threads", str(args.threads), "fold", path, "-o", out]
    command += ["--input", "x".join(map(str, x.shape))]
    folds, times = [], []
    for _ in range(rounds):
        clock = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        times.append(time.perf_counter() - clock)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1]}, None
        document = json.loads(done.stdout)
        folds.append(document["seconds"])
    return document, (statistics.median(folds), statistics.median(times))


@torch.no_grad()
def timm_fold(args, model, x):
    """Convolutions and multiply-accumulates after timm's own method, and its seconds; nothing for a network that it does not change."""
    from timm.utils import reparameterize_model

    times = []
    for _ in range(args.rounds):
        own = copy.deepcopy(model)
        clock = time.perf_counter()
        own = reparameterize_model(own)
        times.append(time.perf_counter() - clock)
    return graphs.count(own, x)[0], statistics.median(times)


def millions(macs):
    return f"{macs / 1e6:,.2f}"


def error_of(document):
    """The largest relative difference of the outputs, and how it is shown; in float64 where float32 tells nothing."""
    single, double = document["relative_difference"], document["relative_difference_float64"]
    error = single if double is None else double
    return error, "not run" if error is None else f"{error:.0e}" + ("" if double is None else " (float64)")


def other(args, model, x, path, document):
    """The cell of another format, and whether its fold is as good as that of the first one."""
    try:
        export(model, x, path)
    except Exception as error:
        return f"PyTorch does not export it ({type(error).__name__})", True
    found, seconds = fold(args, path, x, 1)
    path.unlink()
    if seconds is None:
        return found["failed"], False
    counts = [[of["after"][key] for key in ("convolutions", "macs")] for of in (found, document)]
    (error, shown), as_good = error_of(found), counts[0][0] <= counts[1][0] and counts[0][1] <= counts[1][1]
    counted = "" if counts[0] == counts[1] else f"{counts[0][0]}, {millions(counts[0][1])} M, "
    return counted + shown, as_good and error is not None and error < 1e-5


def line(args, name, folder):
    """The row of one network, and whether its fold is as good as timm's."""
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        model = graphs.build(name).eval()
        graphs.settle(model)
        size = SIZES.get(name, args.size)
        x = torch.randn(1, 3, size, size)
        path = folder / f"{name}.pt2"
        export(model, x, path)
        document, seconds = fold(args, path, x, args.rounds)
        if seconds is None:
            return f"| {name} | {size} | {document['failed']} | | | | | | | | |", False
        own = timm_fold(args, model, x) if name in TIMM else None
        path.unlink()
        others = [other(args, model, x, path.with_suffix(suffix), document) for suffix in (".onnx", ".pt")]
    before, after = document["before"], document["after"]
    theirs = ("", "", "") if own is None else (own[0][0], millions(own[0][1]), f"{own[1]:.2f}")
    as_good = own is None or after["convolutions"] <= own[0][0] and after["macs"] <= own[0][1]
    error, shown = error_of(document)
    row = [
        name, size, f"{before['convolutions']} → {after['convolutions']}", theirs[0], f"{millions(before['macs'])} → {millions(after['macs'])}", theirs[1],
        shown, *(cell for cell, _ in others), f"{seconds[0]:.2f}", theirs[2], f"{seconds[1]:.2f}",
    ]
    return "| " + " | ".join(map(str, row)) + " |", as_good and error is not None and error < 1e-5 and all(good for _, good in others)


def table(columns, names, line):
    """Prints the row of each network that `line` makes in a folder; returns which are as good as their package's."""
    print("| network | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns), flush=True)
    worse = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            row, as_good = line(name, Path(folder))
        print(row, flush=True)
        worse += [] if as_good else [name]
    return "not " + ", ".join(worse) if worse else "all"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foldconv", type=Path, default=Path("target/release/foldconv"), help="the binary")
    parser.add_argument("--rounds", type=common.positive, default=3, help="folds of each network; the seconds are their median")
    parser.add_argument("--threads", type=common.positive, default=2, help="threads of each side")
    parser.add_argument("--size", type=common.positive, default=64, help="height and width of the images")
    parser.add_argument("names", nargs="*", help="networks of timm or torchvision [default: all of the table]")
    args = parser.parse_args()
    args.foldconv = common.binary(args.foldconv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    columns = "image; convolutions; timm's; MACs, millions; timm's; error; of ONNX; of TorchScript; fold, s; timm's; command, s"
    worse = table(columns.split("; "), args.names or TIMM + TORCHVISION, lambda name, folder: line(args, name, folder))
    print(f"\nSeconds of .pt2 files, medians of {args.rounds}, {args.threads} threads, torch {torch.__version__}, {common.cpu_model()}")
    print(f"As good as timm's, and equal to 1e-5: {worse}")


if __name__ == "__main__":
    main()
