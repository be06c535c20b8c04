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

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from data import ROOT, cpu_model, fail, throughput

import torch
import torchvision
from torchvision import transforms

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
    command = [str(args.foldconv), "bench", "data", CONFIG, "--device", "cpu", "--threads", str(args.threads)]
    command += ["--set", f"data.root={folder}", "--set", f"data.classes={classes}"]
    command += ["--seconds", str(args.seconds), "--json"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        fail(f"{shlex.join(command)}: {done.stderr.strip()}", 1)
    return json.loads(done.stdout)["images_per_second"]


def measure(args, folder, classes):
    loader = loader_batches(folder, args.threads)
    runs = {
        "foldconv": lambda: foldconv(args, folder, classes),
        "DataLoader": lambda: throughput(loader, args.seconds),
    }
    rounds = []
    for round_ in range(args.rounds):
        names = list(runs) if round_ % 2 == 0 else list(reversed(runs))
        rounds.append({name: runs[name]() for name in names})
        said = ", ".join(f"{name} {rounds[-1][name]:.0f}" for name in runs)
        print(f"round {round_ + 1}/{args.rounds}: {said}", file=sys.stderr)
    return rounds


def table(rounds, args):
    lines = ["| JPEG files, batches of 64 | images/s | foldconv / it | min | max |", "|---|---:|---:|---:|---:|"]
    for name in ("foldconv", "DataLoader"):
        ratios = [row["foldconv"] / row[name] for row in rounds]
        lines.append(
            f"| {name} | {statistics.median(row[name] for row in rounds):,.0f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"
        )
    about = (
        f"Medians of n = {len(rounds)} interleaved rounds, blocks of {args.seconds} s, {args.threads} threads or workers, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {cpu_model()}."
    )
    return "\n".join([*lines, "", about, "", f"Command: `{shlex.join(['python', *sys.argv])}`"])


def parse():
    parser = argparse.ArgumentParser(
        description="Throughput of foldconv's training batches from JPEG files beside torchvision's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--foldconv", type=Path, default=Path("target/release/foldconv"), help="the binary")
    root = Path(os.environ.get("FOLDCONV_IMAGES", "images")) / "imagenet-sample"
    parser.add_argument("--root", type=Path, default=root, help="folder of CLASS/FILE")
    parser.add_argument("--copies", type=int, default=15, help="times that each file is in the set")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=int, default=5, help="length of a block")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads, or workers, of each side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every block here")
    args = parser.parse_args()
    if min(args.rounds, args.seconds, args.threads, args.copies) < 1:
        parser.error("--rounds, --seconds, --threads and --copies: give 1 or more")
    if not args.foldconv.is_file():
        fail(f"no foldconv binary at {args.foldconv}: run `cargo build --release` or give --foldconv PATH", 2)
    args.foldconv, args.root = args.foldconv.resolve(), args.root.expanduser().resolve()
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rounds = measure(args, folder, link(args.root, args.copies, folder))
    print(table(rounds, args))
    if args.json:
        args.json.write_text(json.dumps(rounds, indent=2) + "\n")


if __name__ == "__main__":
    main()
