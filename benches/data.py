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

import os
from pathlib import Path

import common
from common import fail

try:
    import numpy
    import torch
    import torchvision
    from PIL import Image
    from torchvision import transforms
except ImportError as error:
    fail(f"cannot import torchvision ({error}): run `make setup-peer`, then with .venv/bin/python", 2)

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


def foldconv(args):
    command = ["data", CONFIG, "--seconds", str(args.seconds)]
    return common.foldconv(args, *command, FOLDCONV_DATA=str(args.root))["images_per_second"]


def measure(args):
    images = cifar(args.root)
    whole = WholeBatch(images)
    ways = {name: getattr(whole, name) for name in vars(WholeBatch) if name.startswith("gather_")}
    loader = loader_batches(images, args.threads)
    runs = {
        "foldconv": lambda: foldconv(args),
        "DataLoader": lambda: common.throughput(loader, args.seconds),
        **{name: lambda way=way: common.throughput(whole.batches(way), args.seconds) for name, way in ways.items()},
    }
    rounds = []
    for round_ in range(args.rounds):
        row = common.turns(round_, runs)
        row["whole batch"] = max(row[name] for name in ways)
        rounds.append(row)
        common.say(round_, args, "", row)
    return rounds, ["foldconv", "DataLoader", "whole batch", *ways]


# ImageNet's way, of files, is benches/files.py.


def parse():
    parser = common.parser("Throughput of foldconv's training batches beside torchvision's and PyTorch's.")
    parser.add_argument("--root", type=Path, default=os.environ.get("FOLDCONV_DATA", "data"), help="folder of CIFAR-10")
    parser.add_argument("--seconds", type=common.positive, default=3, help="length of a block")
    args = common.parse(parser)
    args.root = args.root.expanduser().resolve()  # foldconv runs in the root of the repository
    return args


def main():
    args = parse()
    rounds, names = measure(args)
    text = common.table(f"CIFAR-10, batches of {BATCH}", rounds, names)
    about = common.setup(args, torchvision)
    common.report(args, about, f"blocks of {args.seconds} s", text, {"blocks": rounds})


if __name__ == "__main__":
    main()
