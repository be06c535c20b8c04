"""Images a second of ImageNet's training batches alone, from JPEG files: `foldconv bench data` beside torchvision, in turns.

    FOLDCONV_IMAGES=~/images make bench-data
    .venv/bin/python benches/files.py --rounds 5 --json files.json

What is made. Batches of 64 in an order drawn anew each epoch: a file is read and decoded, a part of random area and shape resized to
224x224 with antialiasing, half of them mirrored, float32, normalised. No network sees them. The files are those of
FOLDCONV_IMAGES/imagenet-sample, CLASS/FILE, in an image folder of links that holds each of them --copies times; after the first pass
they come from memory, so that no disk is measured.

- foldconv: `foldconv bench data benches/files.yaml`, a subprocess that reports its own throughput.
- DataLoader: torchvision's ImageFolder with RandomResizedCrop(224), RandomHorizontalFlip, ToTensor and Normalize, as its examples have
  it, with a worker a core that stays from epoch to epoch.

How it is timed. As in benches/data.py: a block of each side in turns, never both at once, the first of them another one each round.

Exit status: 0 measured, 1 foldconv failed, 2 the request was wrong (usage, no binary, no images, no torchvision).
"""

import os
import tempfile
from pathlib import Path

import common
from common import fail

try:
    import torch
    import torchvision
    from torchvision import transforms
except ImportError as error:
    fail(f"cannot import torchvision ({error}): run `make setup-peer`, then with .venv/bin/python", 2)

CONFIG = "benches/files.yaml"
BATCH = 64


def link(images, copies, folder):
    """An image folder of links; how many classes it has."""
    classes = [entry for entry in sorted(images.iterdir()) if entry.is_dir()] if images.is_dir() else []
    if not classes:
        fail(f"{images}: no folders of images; set FOLDCONV_IMAGES or give --root", 2)
    for split, times in (("train", copies), ("val", 1)):
        for entry in classes:
            (folder / split / entry.name).mkdir(parents=True)
            for file in entry.iterdir():
                for at in range(times):
                    (folder / split / entry.name / f"{at}_{file.name}").symlink_to(file)
    return len(classes)


def loader_batches(folder, workers):
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = torchvision.datasets.ImageFolder(folder / "train", transform)
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    while True:
        for x, _ in loader:
            yield x


def foldconv(args, folder, classes):
    command = ["data", CONFIG, "--set", f"data.root={folder}", "--set", f"data.classes={classes}"]
    command += ["--seconds", str(args.seconds)]
    return common.foldconv(args, *command, OMP_WAIT_POLICY="PASSIVE")["images_per_second"]


def measure(args, folder, classes):
    loader = loader_batches(folder, args.threads)
    runs = {
        "foldconv": lambda: foldconv(args, folder, classes),
        "DataLoader": lambda: common.throughput(loader, args.seconds),
    }
    rounds = []
    for round_ in range(args.rounds):
        rounds.append(common.turns(round_, runs))
        common.say(round_, args, "", rounds[-1])
    return rounds, list(runs)


def parse():
    parser = common.parser("Throughput of foldconv's training batches from JPEG files beside torchvision's.")
    root = Path(os.environ.get("FOLDCONV_IMAGES", "images")) / "imagenet-sample"
    parser.add_argument("--root", type=Path, default=root, help="folder of CLASS/FILE")
    parser.add_argument("--copies", type=common.positive, default=15, help="times that each file is in the set")
    parser.add_argument("--seconds", type=common.positive, default=5, help="length of a block")
    args = common.parse(parser)
    args.root = args.root.expanduser().resolve()  # the links are elsewhere
    return args


def main():
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rounds, names = measure(args, folder, link(args.root, args.copies, folder))
    text = common.table(f"JPEG files, batches of {BATCH}", rounds, names)
    about = common.setup(args, torchvision)
    common.report(args, about, f"blocks of {args.seconds} s", text, {"blocks": rounds})


if __name__ == "__main__":
    main()
