"""The PyTorch peer of `foldconv bench train`: the same training work in PyTorch, eager and compiled, timed beside it.

    make bench-peer
    .venv/bin/python benches/peer.py --rounds 5 --nets smallnet --ops plain maconv --json peer.json
    .venv/bin/python benches/peer.py --sides foldconv compile

What is trained. smallnet and mobilenet_v2 x0.35 with the CIFAR stem, each with every site plain, maconv or mdconv,
on 2048 resident uint8 images of 3x32x32 in 10 classes. A step is: shuffled indexes, gather, pad 2 and random crop,
random flip, to float, normalise, forward, cross entropy, backward, SGD. The PyTorch sides use float32, channels_last
for weights and input, in-place activations, augmentation as whole-batch tensor operations, and `torch.optim.SGD` with
its default choice of implementation. No step reads a number back. mobilenet_v2_224, for a GPU, is mobilenet_v2 x1.0 as
published, in bfloat16 (autocast, on both sides), on as many images of 3x224x224 in batches of 256, padded by 4.

- foldconv: `foldconv bench train`, a subprocess that reports its own throughput, and its memory.
- eager: PyTorch as it is.
- compile: the same model through `torch.compile`, forward and backward, in its default mode, on CUDA in max-autotune. The loss and the optimizer
  are left as they are: with the whole step compiled it was no faster (smallnet, 9 interleaved rounds: 0.99 of the
  throughput for plain, 0.97 for maconv). It needs a C++ compiler and Python's headers (Debian: g++, python3-dev).

How it is timed. A round is one block of steps of each side, never two at once, with the same number of threads, each
after warm-up steps that don't count. A foldconv block is a process of its own. Each model of PyTorch is made, and
compiled, once, before the first round, and goes on training from block to block: no time to compile counts. Each round
begins with another side, and visits every network and operator before the next round begins, so that a drift of the
machine falls on all sides and all rows. The environment is that of whoever calls, on all sides, the allocator's
settings too; what foldconv sets itself in its process, its users get too.

How the ratios are computed. Each round gives ours / theirs from neighbouring blocks; above 1 foldconv is faster. The
table has the median of these per-round ratios, with their min and max, so it need not equal the ratio of the two median
throughputs. The second table is of foldconv alone: what a step with the operator takes over a plain one of the same
round, and the peak memory of the steps likewise.

Exit status: 0 measured, 1 a block failed or nothing could be compiled, 2 the request was wrong (usage, no binary, no
torch).
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import common
from common import Spread, fail

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = "benches/train.yaml"
CONFIG_BATCH = 128

CLASSES = 10
IMAGES = 2048
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


def mobilenet_v2(site, width=0.35, stem=1):
    """torchvision's MobileNetV2. The CIFAR stem has stride 1 in the first convolution and the 24-channel stage, ImageNet's 2."""
    stages = [  # expansion, channels, blocks, stride of the first block
        (1, 16, 1, 1),
        (6, 24, 2, stem),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    c_in, last = make_divisible(32 * width), make_divisible(1280 * max(1.0, width))
    layers = [conv_bn(3, c_in, 3, stem), nn.ReLU6(inplace=True)]
    for expansion, channels, blocks, stride in stages:
        c_out = make_divisible(channels * width)
        for block in range(blocks):
            layers.append(InvertedResidual(site, c_in, c_out, stride if block == 0 else 1, expansion))
            c_in = c_out
    layers += [conv_bn(c_in, last), nn.ReLU6(inplace=True), global_average_pool()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(last, CLASSES))


@dataclass(frozen=True)
class Net:
    """A network and what it is trained on."""

    label: str
    build: Callable
    settings: list  # for foldconv, over CONFIG
    batch: int = CONFIG_BATCH
    size: int = 32
    pad: int = 2
    bf16: bool = False


NETWORKS = {
    "smallnet": Net("smallnet", smallnet, ["net.name=smallnet"]),
    "mobilenet_v2": Net("mobilenet_v2 x0.35", mobilenet_v2, ["net={name: mobilenet_v2, width: 0.35, stem: cifar}"]),
    "mobilenet_v2_224": Net(
        "mobilenet_v2 x1.0, 224x224, bf16",
        lambda site: mobilenet_v2(site, width=1.0, stem=2),
        ["net.name=mobilenet_v2", "data.size=224", "data.augment={pad: 4, crop: 224, flip: true}", "train.precision=bf16"],
        batch=256,
        size=224,
        pad=4,
        bf16=True,
    ),
}
DEFAULT_NETS = ["smallnet", "mobilenet_v2"]

# Parameters of the plain network, and the kernel and attention weights (no batch norms, no biases) an operator adds.
PLAIN_PARAMETERS = {"smallnet": 5_386, "mobilenet_v2": 408_938, "mobilenet_v2_224": 2_236_682}
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
        plain = {name: net.build(conv_bn) for name, net in NETWORKS.items()}
        for net, expected in PLAIN_PARAMETERS.items():
            count = sum(p.numel() for p in plain[net].parameters())
            assert count == expected, f"{net}, plain: {count} parameters, not {expected}"
        for (net, op), expected in EXTRA_WEIGHTS.items():
            count = weights(NETWORKS[net].build(OPERATORS[op])) - weights(plain[net])
            assert count == expected, f"{net}, {op}: {count} weights over plain, not {expected}"


# Data


class Batches:
    """Endless shuffled, augmented, normalised batches: (N, 3, size, size) float32 in channels_last and (N,) int64."""

    def __init__(self, net, batch, device):
        self.batch, self.size, self.pad = batch, net.size, net.pad
        self.side = net.size + 2 * net.pad
        with torch.device(device):
            self.make(batch)

    def make(self, batch):
        # channels_last from the start: a pixel's channels lie together, and every later step keeps that layout.
        images = torch.randint(0, 256, (IMAGES, 3, self.size, self.size), dtype=torch.uint8)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (IMAGES,))
        mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
        std = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.columns = torch.arange(self.size)
        # The first pixel of each image in the padded batch, seen as one long list of pixels.
        self.starts = torch.arange(batch).view(-1, 1, 1) * self.side**2

    def __iter__(self):
        device = self.images.device
        while True:
            for index in torch.randperm(IMAGES, device=device).split(self.batch):
                if len(index) == self.batch:  # the last, short batch of an epoch is dropped
                    with torch.device(device):
                        images = self.augment(self.images[index])
                    yield images, self.labels[index]

    def augment(self, images):
        """Random crop and flip as one gather of whole pixels."""
        n, pad, size = len(images), self.pad, self.size
        pixels = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).reshape(-1, 3)
        top, left = torch.randint(0, 2 * pad + 1, (2, n, 1))
        flip = torch.rand(n, 1) < 0.5
        rows = top + self.columns
        columns = left + torch.where(flip, size - 1 - self.columns, self.columns)
        index = self.starts + rows[:, :, None] * self.side + columns[:, None, :]
        crops = pixels.index_select(0, index.flatten()).view(n, size, size, 3).permute(0, 3, 1, 2)
        return crops.float().mul_(self.scale).add_(self.shift)


# The sides. Each gives a function that runs a block and returns images per second, or foldconv's JSON document.


class Training:
    """A model of PyTorch, its optimizer and its data, which go on from block to block."""

    def __init__(self, net, op, args, compiled):
        torch.manual_seed(0)
        net = NETWORKS[net]
        model = net.build(OPERATORS[op]).to(args.device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.model = torch.compile(model, mode=mode(args)) if compiled else model
        self.batch = args.batch or net.batch
        self.batches = iter(Batches(net, self.batch, args.device))
        self.args, self.bf16 = args, net.bf16
        self.run(args.warmup)  # compiles

    def run(self, steps):
        for _ in range(steps):
            images, labels = next(self.batches)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def block(self):
        self.run(self.args.warmup)
        start = common.clock(self.args)
        self.run(self.args.steps)
        return self.args.steps * self.batch / (common.clock(self.args) - start)


def mode(args):
    """Of torch.compile. On CUDA the one that measures kernels and records graphs."""
    return "default" if args.device == "cpu" else "max-autotune"


def eager(net, op, args):
    return Training(net, op, args, compiled=False).block


def compiled(net, op, args):
    start = time.perf_counter()
    try:
        training = Training(net, op, args, compiled=True)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = str(error).strip().splitlines()[0]
        fail(f"torch.compile: {reason}; it needs a C++ compiler and Python's headers; or leave it out of --sides", 1)
    print(f"compiled {net} {op} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return training.block


def foldconv(net, op, args):
    settings = [*NETWORKS[net].settings, f"operator.name={op}", f"train.batch={args.batch or NETWORKS[net].batch}"]
    command = ["train", CONFIG, "--steps", str(args.steps), "--warmup", str(args.warmup)]
    for setting in settings:
        command += ["--set", setting]
    return lambda: common.foldconv(args, *command)


SIDES = {"foldconv": foldconv, "eager": eager, "compile": compiled}


def measure(args):
    """For each network and operator what each side did in each round: images per second, and foldconv's documents."""
    rows = [{"net": net, "operator": op, "rounds": [], "foldconv": []} for net in args.nets for op in args.ops]
    blocks = [{side: SIDES[side](row["net"], row["operator"], args) for side in args.sides} for row in rows]
    for round_ in range(args.rounds):
        for row, runs in zip(rows, blocks):
            done = common.turns(round_, runs)
            if "foldconv" in done:
                row["foldconv"].append(done["foldconv"])
                done["foldconv"] = done["foldconv"]["images_per_second"]
            row["rounds"].append(done)
            common.say(round_, args, f"  {row['net']} {row['operator']}", done)
    return rows


# Report


def throughputs(rows, sides):
    """A row a network and operator, foldconv's throughput over that of each other side."""
    others = [side for side in sides if side != "foldconv"] if "foldconv" in sides else []
    header = ["network", "operator", *(f"{side}, images/s" for side in sides)]
    for side in others:
        header += [f"ours / {side}", "min", "max"]
    lines = [f"| {' | '.join(header)} |", "|---|---|" + "---:|" * (len(header) - 2)]
    for row in rows:
        cells = [NETWORKS[row["net"]].label, row["operator"]]
        cells += [f"{statistics.median(done[side] for done in row['rounds']):.0f}" for side in sides]
        cells += [str(common.over(row["rounds"], "foldconv", side)) for side in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def over_plain(rows):
    """A row a network and operator: foldconv's step, and its memory, over those of the plain network."""
    lines = [
        "| network | operator | step / plain step | min | max | peak memory / plain | min | max |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    plain = {row["net"]: row["foldconv"] for row in rows if row["operator"] == "plain"}

    def over(row, key):
        pairs = [(ours[key], theirs[key]) for ours, theirs in zip(row["foldconv"], plain[row["net"]])]
        # Where the system does not tell the memory, there is none.
        return Spread(a / b for a, b in pairs) if all(a and b for a, b in pairs) else " | | "

    for row in rows:
        if row["operator"] != "plain" and plain.get(row["net"]):
            ratios = [over(row, "step_seconds"), over(row, "peak_memory_bytes")]
            lines.append(f"| {NETWORKS[row['net']].label} | {row['operator']} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def parse():
    parser = common.parser("Training throughput of foldconv beside the same work in PyTorch, eager and compiled.")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="who trains")
    parser.add_argument("--steps", type=common.positive, default=10, help="timed steps of a block")
    parser.add_argument("--warmup", type=common.positive, default=3, help="untimed steps before them")
    parser.add_argument(
        "--batch", type=common.positive, help=f"images of a step, at most {IMAGES}; default: the network's"
    )
    parser.add_argument("--nets", nargs="+", choices=NETWORKS, default=DEFAULT_NETS, help="networks")
    parser.add_argument("--ops", nargs="+", choices=OPERATORS, default=list(OPERATORS), help="operators")
    args = common.parse(parser)
    if args.batch and args.batch > IMAGES:
        parser.error(f"--batch {args.batch}: there are {IMAGES} images")
    return args


def main():
    args = parse()
    check_counts()
    about = common.setup(args)
    about.update({key: getattr(args, key) for key in ("sides", "steps", "warmup", "batch")})
    rows = measure(args)
    text = "\n\n".join(part for part in (throughputs(rows, args.sides), over_plain(rows)) if part)
    blocks = f"blocks of {args.steps} steps (after {args.warmup} of warm-up), batch {args.batch or 'of the network'}"
    common.report(args, about, blocks, text, {"rows": rows})


if __name__ == "__main__":
    main()
