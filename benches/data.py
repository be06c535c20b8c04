"""Images a second of the training batches alone: `foldconv bench data` beside torchvision and PyTorch, in turns.

    FOLDCONV_DATA=~/data make bench-data
    .venv/bin/python benches/data.py --rounds 5 --json data.json

What is made. CIFAR-10's 50,000 training images, batches of 128 in an order drawn anew each epoch: padded by 4 black pixels, cut to
32x32 at a random place, half of them mirrored, float32, normalised, channels_last. No network sees them.

- foldconv: `foldconv bench data benches/data.yaml`, a subprocess that reports its own throughput.
- DataLoader: a dataset of PIL images with RandomCrop(32, 4), RandomHorizontalFlip, ToTensor and Normalize of torchvision, as its
  examples have it, with a worker a core that stays from epoch to epoch.
- whole batch: operations of PyTorch on the resident uint8 images, padded once, in the ways of WHOLE_BATCH below; each round the
  fastest of them counts.

How it is timed. A round is a block of each, one after another, never two at once, in another order each round; blocks of --seconds after a
tenth of that which doesn't count. All have the same environment; on a machine that does other things too, set OMP_WAIT_POLICY=PASSIVE,
without which threads that wait take the processors from those that work. The table has medians over the rounds, and the medians, least and greatest of the rounds' ratios.

Exit status: 0 measured, 1 foldconv failed, 2 the request was wrong (usage, no binary, no data, no torchvision).
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
    print(f"data.py: {message}", file=sys.stderr)
    sys.exit(status)


try:
    import numpy
    import torch
    import torchvision
    from PIL import Image
    from torchvision import transforms
except ImportError as error:
    fail(f"cannot import torchvision ({error}): run `make setup-peer`, then with .venv/bin/python", 2)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "benches/data.yaml"
BATCH, SIZE, PAD = 128, 32, 4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


# Data


def cifar(root):
    """uint8 (50000, 32, 32, 3)"""
    folder = next((folder for folder in (root / "cifar-10-batches-bin", root) if (folder / "data_batch_1.bin").is_file()), None)
    if folder is None:
        fail(f"{root}: holds no cifar-10-batches-bin; set FOLDCONV_DATA or give --root", 2)
    rows = [numpy.fromfile(folder / f"data_batch_{at}.bin", numpy.uint8).reshape(-1, 3073) for at in range(1, 6)]
    return numpy.ascontiguousarray(numpy.concatenate(rows)[:, 1:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1))


# Whole batches. Each function makes one batch: images (n, 3, 32, 32), channels_last, from `indices`.


class WholeBatch:
    def __init__(self, images):
        images = torch.from_numpy(images)
        self.n = len(images)
        self.padded = torch.nn.functional.pad(images, (0, 0, PAD, PAD, PAD, PAD)).contiguous()
        self.side = SIZE + 2 * PAD
        self.pixels = self.padded.view(-1, 3)
        # Every run of 32 pixels, as a row that overlaps the next.
        self.runs = self.pixels.view(-1).as_strided((len(self.pixels) - SIZE + 1, 3 * SIZE), (3, 1))
        # Every window of every image.
        self.windows = self.padded.unfold(1, SIZE, 1).unfold(2, SIZE, 1)
        # For a whole image: broadcasting over three channels would be slower by far.
        self.scale = (1 / (255 * torch.tensor(STD))).repeat(SIZE * SIZE)
        self.shift = (-torch.tensor(MEAN) / torch.tensor(STD)).repeat(SIZE * SIZE)
        self.across = torch.arange(SIZE)

    def draws(self, n):
        places = torch.randint(2 * PAD + 1, (2, n))
        return places[0], places[1], torch.rand(n) < 0.5

    def normalise(self, pixels):
        floats = pixels.reshape(len(pixels), -1).float()
        torch.addcmul(self.shift, floats, self.scale, out=floats)
        return floats.view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2)

    def gather_pixels(self, indices):
        """The index of every pixel, mirrored or not."""
        top, left, flip = self.draws(len(indices))
        rows = (indices * self.side + top)[:, None] + self.across
        columns = left[:, None] + torch.where(flip[:, None], self.across.flip(0), self.across)
        places = rows[:, :, None] * self.side + columns[:, None]
        return self.normalise(self.pixels.index_select(0, places.view(-1)).view(-1, SIZE, SIZE, 3))

    def gather_runs(self, indices):
        """The index of every row, then half of them mirrored."""
        top, left, flip = self.draws(len(indices))
        rows = ((indices * self.side + top)[:, None] + self.across) * self.side + left[:, None]
        pixels = self.runs[rows.view(-1)].view(-1, SIZE, SIZE, 3)
        mirrored = flip.nonzero().view(-1)
        pixels[mirrored] = pixels[mirrored].flip(2)
        return self.normalise(pixels)

    def gather_windows(self, indices):
        """Whole windows, then half of them mirrored."""
        top, left, flip = self.draws(len(indices))
        pixels = self.windows[indices, top, left].permute(0, 2, 3, 1)
        return self.normalise(torch.where(flip[:, None, None, None], pixels.flip(2), pixels).contiguous())

    def gather_by_place(self, indices):
        """Images first; then the rows of each of the 9 places at once, then its columns."""
        top, left, flip = self.draws(len(indices))
        images = self.padded.index_select(0, indices)
        rows = torch.empty(len(indices), SIZE, self.side, 3, dtype=torch.uint8)
        pixels = torch.empty(len(indices), SIZE, SIZE, 3, dtype=torch.uint8)
        for place in range(2 * PAD + 1):
            here = (top == place).nonzero().view(-1)
            rows[here] = images[here, place : place + SIZE]
        for place in range(2 * PAD + 1):
            here = (left == place).nonzero().view(-1)
            pixels[here] = rows[here, :, place : place + SIZE]
        mirrored = flip.nonzero().view(-1)
        pixels[mirrored] = pixels[mirrored].flip(2)
        return self.normalise(pixels)

    def batches(self, way):
        while True:
            order = torch.randperm(self.n)
            for start in range(0, self.n, BATCH):
                yield way(order[start : start + BATCH])


# The DataLoader


class PilImages(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), 0


def loader_batches(images, workers):
    loader = torch.utils.data.DataLoader(
        PilImages(images), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    while True:
        for x, _ in loader:
            yield x


# Measuring


def throughput(batches, seconds):
    def run(seconds):
        clock, images = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - clock) < seconds:
            images += len(next(batches))
        return images / elapsed

    run(seconds / 10)
    return run(seconds)


def foldconv(args):
    command = [str(args.foldconv), "bench", "data", CONFIG, "--device", "cpu", "--threads", str(args.threads)]
    command += ["--seconds", str(args.seconds), "--json"]
    environment = {**os.environ, "FOLDCONV_DATA": str(args.root)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        fail(f"{shlex.join(command)}: {done.stderr.strip()}", 1)
    return json.loads(done.stdout)["images_per_second"]


def measure(args):
    images = cifar(args.root)
    whole = WholeBatch(images)
    ways = {name: getattr(whole, name) for name in vars(WholeBatch) if name.startswith("gather_")}
    loader = loader_batches(images, args.threads)
    runs = {
        "foldconv": lambda: foldconv(args),
        "DataLoader": lambda: throughput(loader, args.seconds),
        **{name: lambda way=way: throughput(whole.batches(way), args.seconds) for name, way in ways.items()},
    }
    rounds = []
    for round_ in range(args.rounds):
        names = list(runs)
        names = names[round_ % len(names) :] + names[: round_ % len(names)]
        row = {name: runs[name]() for name in names}
        row["whole batch"] = max(row[name] for name in ways)
        rounds.append(row)
        print(f"round {round_ + 1}/{args.rounds}: {', '.join(f'{k} {v:.0f}' for k, v in row.items())}", file=sys.stderr)
    return rounds


# ImageNet's way, of files, is benches/files.py.


# Report


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def table(rounds, args):
    lines = ["| CIFAR-10, batches of 128 | images/s | foldconv / it | min | max |", "|---|---:|---:|---:|---:|"]
    for name in ["foldconv", "DataLoader", "whole batch", *(name for name in rounds[0] if name.startswith("gather_"))]:
        ratios = [row["foldconv"] / row[name] for row in rounds]
        lines.append(
            f"| {name} | {statistics.median(row[name] for row in rounds):,.0f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of n = {len(rounds)} interleaved rounds, blocks of {args.seconds} s, {args.threads} threads or workers, "
            f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}, torch {torch.__version__}, torchvision {torchvision.__version__}, {cpu_model()}.",
            "",
            f"Command: `{shlex.join(['python', *sys.argv])}`",
        ]
    )


def parse():
    parser = argparse.ArgumentParser(
        description="Throughput of foldconv's training batches beside torchvision's and PyTorch's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--foldconv", type=Path, default=Path("target/release/foldconv"), help="the binary")
    parser.add_argument("--root", type=Path, default=os.environ.get("FOLDCONV_DATA", "data"), help="folder of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=int, default=3, help="length of a block")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads, or workers, of each side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every block here")
    args = parser.parse_args()
    if min(args.rounds, args.seconds, args.threads) < 1:
        parser.error("--rounds, --seconds and --threads: give 1 or more")
    if not args.foldconv.is_file():
        fail(f"no foldconv binary at {args.foldconv}: run `cargo build --release` or give --foldconv PATH", 2)
    # The subprocess runs in the root of the repository.
    args.foldconv, args.root = args.foldconv.resolve(), args.root.expanduser().resolve()
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    rounds = measure(args)
    print(table(rounds, args))
    if args.json:
        args.json.write_text(json.dumps(rounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
