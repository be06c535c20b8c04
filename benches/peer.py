"""The PyTorch peer of `foldconv bench train`: the same training work in PyTorch eager, timed beside it.

    make bench-peer
    .venv/bin/python benches/peer.py --rounds 5 --nets smallnet --ops plain maconv --json peer.json

What is trained. smallnet and mobilenet_v2 x0.35 with the CIFAR stem, each with every site plain, maconv or mdconv,
on 2048 resident uint8 images of 3x32x32 in 10 classes. A step is: shuffled indexes, gather, pad 2 and random crop,
random flip, to float, normalise, forward, cross entropy, backward, SGD. The PyTorch side uses float32, eager mode,
channels_last for weights and input, in-place activations, augmentation as whole-batch tensor operations, and
`torch.optim.SGD` with its default choice of implementation. No step reads a number back.

How it is timed. A round is one block of foldconv steps (a subprocess that reports its own images per second) and one
block of PyTorch steps (in this process), never both at once, with the same number of threads. Every block starts from
a fresh network and optimizer and takes its warm-up steps before the clock starts. foldconv goes first in even rounds,
PyTorch in odd ones, and a round visits every network and operator before the next round begins, so that a drift of
the machine falls on both sides and on all rows.

How the ratios are computed. Each round gives ours / PyTorch eager from its two neighbouring blocks; above 1 foldconv is
faster. The table has the median of these per-round ratios, with their min and max, so it need not equal the ratio of
the two median throughputs.

Exit status: 0 measured, 1 a foldconv block failed, 2 the request was wrong (usage, no binary, no torch).
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path


def fail(message, status):
    print(f"peer.py: {message}", file=sys.stderr)
    sys.exit(status)


try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as error:
    fail(f"cannot import torch ({error}): run with the Python of `make setup`, .venv/bin/python", 2)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "benches/train.yaml"
CONFIG_BATCH = 128  # what CONFIG says; another --batch overrides it on both sides

CLASSES = 10
IMAGES = 2048
SIZE, PAD = 32, 2
INTERMEDIATE = 20  # m: the middle channels of maconv and mdconv


# Operators: what stands in place of one 1x1 convolution and its batch norm.


def conv_bn(c_in, c_out, kernel=1, stride=1, groups=1):
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class MAConv(nn.Module):
    """y = BN2(W2 * BN1(W1 * x)) + BN0(W0 * x)"""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.first = conv_bn(c_in, INTERMEDIATE)
        self.second = conv_bn(INTERMEDIATE, c_out)
        self.bypass = conv_bn(c_in, c_out)

    def forward(self, x):
        return self.second(self.first(x)) + self.bypass(x)


class MDConv(MAConv):
    """u = BN1(W1 * x), v = u . sigmoid(FC2(relu(FC1(GAP(x))))), y = BN2(W2 * v) + BN0(W0 * x)"""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out)
        hidden = max(1, c_in // 4)
        self.attention = nn.Sequential(
            nn.Linear(c_in, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, INTERMEDIATE), nn.Sigmoid()
        )

    def forward(self, x):
        gate = self.attention(x.mean((2, 3)))  # (N, m)
        return self.second(self.first(x) * gate[:, :, None, None]) + self.bypass(x)


OPERATORS = {"plain": conv_bn, "maconv": MAConv, "mdconv": MDConv}


# Networks. `site(c_in, c_out)` makes the operator of one site.


def global_average_pool():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def smallnet(site):
    layers = [conv_bn(3, 16, 3), nn.ReLU(inplace=True)]
    c_in = 16
    for c_out in (16, 32, 64):
        layers += [site(c_in, c_out), nn.ReLU(inplace=True)]
        layers += [conv_bn(c_out, c_out, 3, stride=2, groups=c_out), nn.ReLU(inplace=True)]
        c_in = c_out
    return nn.Sequential(*layers, global_average_pool(), nn.Linear(c_in, CLASSES))


class InvertedResidual(nn.Module):
    def __init__(self, site, c_in, c_out, stride, expansion):
        super().__init__()
        middle = c_in * expansion
        layers = [site(c_in, middle), nn.ReLU6(inplace=True)] if expansion != 1 else []
        layers += [conv_bn(middle, middle, 3, stride, groups=middle), nn.ReLU6(inplace=True), site(middle, c_out)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


def make_divisible(channels, divisor=8):
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def mobilenet_v2(site, width=0.35):
    """torchvision's MobileNetV2 with the CIFAR stem: stride 1 in the first convolution and the 24-channel stage."""
    stages = [  # expansion, channels, blocks, stride of the first block
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    c_in, last = make_divisible(32 * width), make_divisible(1280 * max(1.0, width))
    layers = [conv_bn(3, c_in, 3), nn.ReLU6(inplace=True)]
    for expansion, channels, blocks, stride in stages:
        c_out = make_divisible(channels * width)
        for block in range(blocks):
            layers.append(InvertedResidual(site, c_in, c_out, stride if block == 0 else 1, expansion))
            c_in = c_out
    layers += [conv_bn(c_in, last), nn.ReLU6(inplace=True), global_average_pool()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(last, CLASSES))


NETWORKS = {"smallnet": smallnet, "mobilenet_v2": mobilenet_v2}
LABELS = {"smallnet": "smallnet", "mobilenet_v2": "mobilenet_v2 x0.35"}
SETTINGS = {"smallnet": [], "mobilenet_v2": ["net.width=0.35", "net.stem=cifar"]}

# Parameters of the plain network, and the kernel and attention weights (no batch norms, no biases) an operator adds.
PLAIN_PARAMETERS = {"smallnet": 5_386, "mobilenet_v2": 408_938}
EXTRA_WEIGHTS = {
    ("smallnet", "maconv"): 3_520,
    ("smallnet", "mdconv"): 4_224,
    ("mobilenet_v2", "maconv"): 123_520,
    ("mobilenet_v2", "mdconv"): 284_416,
}


def check_counts():
    """Both sides train the same networks only if these hold; on the meta device nothing is allocated."""

    def weights(model):
        return sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))

    with torch.device("meta"):
        plain = {net: build(conv_bn) for net, build in NETWORKS.items()}
        for net, expected in PLAIN_PARAMETERS.items():
            count = sum(p.numel() for p in plain[net].parameters())
            assert count == expected, f"{net}, plain: {count} parameters, not {expected}"
        for (net, op), expected in EXTRA_WEIGHTS.items():
            count = weights(NETWORKS[net](OPERATORS[op])) - weights(plain[net])
            assert count == expected, f"{net}, {op}: {count} weights over plain, not {expected}"


# Data


class Batches:
    """Endless shuffled, augmented, normalised batches: (N, 3, 32, 32) float32 in channels_last and (N,) int64."""

    def __init__(self, batch):
        self.batch = batch
        # channels_last from the start: a pixel's channels lie together, and every later step keeps that layout.
        images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (IMAGES,))
        mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
        std = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.columns = torch.arange(SIZE)
        # The first pixel of each image in the padded batch, seen as one long list of pixels.
        self.starts = torch.arange(batch).view(-1, 1, 1) * (SIZE + 2 * PAD) ** 2

    def __iter__(self):
        while True:
            for index in torch.randperm(IMAGES).split(self.batch):
                if len(index) == self.batch:  # the last, short batch of an epoch is dropped
                    yield self.augment(self.images[index]), self.labels[index]

    def augment(self, images):
        """Random crop and flip as one gather of whole pixels."""
        n, side = len(images), SIZE + 2 * PAD
        pixels = F.pad(images, (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1).reshape(-1, 3)
        top, left = torch.randint(0, 2 * PAD + 1, (2, n, 1))
        flip = torch.rand(n, 1) < 0.5
        rows = top + self.columns
        columns = left + torch.where(flip, SIZE - 1 - self.columns, self.columns)
        index = self.starts + rows[:, :, None] * side + columns[:, None, :]
        crops = pixels.index_select(0, index.flatten()).view(n, SIZE, SIZE, 3).permute(0, 3, 1, 2)
        return crops.float().mul_(self.scale).add_(self.shift)


# The two sides of a round. Both return images per second.


def train_pytorch(net, op, args):
    torch.manual_seed(0)
    model = NETWORKS[net](OPERATORS[op]).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = iter(Batches(args.batch))

    def run(steps):
        for _ in range(steps):
            images, labels = next(batches)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    run(args.warmup)
    start = time.perf_counter()
    run(args.steps)
    return args.steps * args.batch / (time.perf_counter() - start)


def foldconv_command(net, op, args):
    settings = [f"net.name={net}", *SETTINGS[net], f"operator.name={op}"]
    if args.batch != CONFIG_BATCH:
        settings.append(f"train.batch={args.batch}")
    command = [str(args.foldconv), "bench", "train", CONFIG]
    for setting in settings:
        command += ["--set", setting]
    command += ["--steps", str(args.steps), "--warmup", str(args.warmup), "--threads", str(args.threads)]
    return command + ["--json"]


def train_foldconv(net, op, args):
    command = foldconv_command(net, op, args)
    try:
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        fail(f"cannot run {args.foldconv}: {error.strerror}", 2)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        fail(f"`{shlex.join(command)}` exited with status {done.returncode}: {said}", 1)
    try:
        return float(json.loads(done.stdout)["images_per_second"])
    except (ValueError, KeyError, TypeError):
        fail(f"`{shlex.join(command)}` printed no JSON document with a number images_per_second", 1)


def measure(args):
    sides = [("foldconv", train_foldconv), ("pytorch", train_pytorch)]
    rows = [{"net": net, "operator": op, "foldconv": [], "pytorch": []} for net in args.nets for op in args.ops]
    for round_ in range(args.rounds):
        for row in rows:
            for side, train in sides if round_ % 2 == 0 else reversed(sides):
                row[side].append(train(row["net"], row["operator"], args))
            ours, theirs = row["foldconv"][-1], row["pytorch"][-1]
            print(
                f"round {round_ + 1}/{args.rounds}  {row['net']} {row['operator']}: "
                f"foldconv {ours:.0f}, PyTorch {theirs:.0f} images/s",
                file=sys.stderr,
            )
    for row in rows:
        row["ratios"] = [ours / theirs for ours, theirs in zip(row["foldconv"], row["pytorch"])]
        row["foldconv_median"] = statistics.median(row["foldconv"])
        row["pytorch_median"] = statistics.median(row["pytorch"])
        row["ratio_median"] = statistics.median(row["ratios"])
        row["ratio_min"], row["ratio_max"] = min(row["ratios"]), max(row["ratios"])
    return rows


# Report


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def setup(args):
    return {
        "rounds": args.rounds,
        "steps": args.steps,
        "warmup": args.warmup,
        "batch": args.batch,
        "threads": args.threads,
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "command": shlex.join(["python", *sys.argv]),
    }


def table(rows, setup):
    lines = [
        "| network | operator | foldconv, images/s | PyTorch eager, images/s | ours / PyTorch | min | max |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {LABELS[row['net']]} | {row['operator']} | {row['foldconv_median']:.0f} | {row['pytorch_median']:.0f} "
            f"| {row['ratio_median']:.2f} | {row['ratio_min']:.2f} | {row['ratio_max']:.2f} |"
        )
    lines += [
        "",
        f"Medians of n = {setup['rounds']} interleaved rounds of {setup['steps']} steps (after {setup['warmup']} of "
        f"warm-up), batch {setup['batch']}, {setup['threads']} threads, float32; the ratio is the median of the "
        f"per-round ratios. torch {setup['torch']}, {setup['cpu']}.",
        "",
        f"Command: `{setup['command']}`",
    ]
    return "\n".join(lines)


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parse():
    parser = argparse.ArgumentParser(
        description="Training throughput of foldconv beside the same work in PyTorch eager.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--foldconv", type=Path, default=Path("target/release/foldconv"), help="the binary")
    parser.add_argument("--rounds", type=positive, default=5, help="interleaved rounds")
    parser.add_argument("--steps", type=positive, default=10, help="timed steps of a block")
    parser.add_argument("--warmup", type=positive, default=3, help="untimed steps before them")
    parser.add_argument("--batch", type=positive, default=CONFIG_BATCH, help=f"images of a step, at most {IMAGES}")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="threads of either side")
    parser.add_argument("--nets", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks")
    parser.add_argument("--ops", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="operators")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the setup and every block here")
    args = parser.parse_args()
    if args.batch > IMAGES:
        parser.error(f"--batch {args.batch}: there are {IMAGES} images")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: no such folder")
    if not args.foldconv.is_file():
        fail(f"no foldconv binary at {args.foldconv}: run `cargo build --release` or give --foldconv PATH", 2)
    args.foldconv = args.foldconv.resolve()  # the subprocess runs in the root of the repository
    return args


def main():
    args = parse()
    check_counts()
    torch.set_num_threads(args.threads)
    about = setup(args)
    rows = measure(args)
    print(table(rows, about))
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
