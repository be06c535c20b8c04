"""What the scripts of this folder share: how foldconv is run, how sides take turns, and what a table says."""

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

ROOT = Path(__file__).resolve().parent.parent


def fail(message, status):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


try:
    import torch
except ImportError as error:
    fail(f"cannot import torch ({error}): run with the Python of `make setup`, .venv/bin/python", 2)


# Arguments


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parser(description):
    """With the options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--foldconv", type=Path, default=Path("target/release/foldconv"), help="the binary")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, of each side")
    parser.add_argument("--rounds", type=positive, default=5, help="interleaved rounds")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="threads, or workers, of each side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the setup and every block here")
    return parser


def binary(path):
    """The path of foldconv, which runs in the root of the repository."""
    if not path.is_file():
        fail(f"no foldconv binary at {path}: run `cargo build --release` or give --foldconv PATH", 2)
    return path.resolve()


def parse(parser):
    """The arguments; the threads are set."""
    args = parser.parse_args()
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json {args.json}: no such folder")
    args.foldconv = binary(args.foldconv)
    torch.set_num_threads(args.threads)
    if args.device != "cpu":
        if not torch.cuda.is_available():
            fail(f"--device {args.device}: torch {torch.__version__} finds no CUDA here", 2)
        torch.cuda.set_device(args.device if ":" in args.device else 0)
        # float32 that is float32, as on the other side.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return args


def clock(args):
    """Seconds, once the device has done what was asked of it."""
    if args.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


# Measuring


def foldconv(args, *arguments, **environment):
    """The JSON document of a `foldconv bench`."""
    command = [str(args.foldconv), "bench", *arguments, "--device", args.device, "--threads", str(args.threads), "--json"]
    environment = {**os.environ, **environment}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError as error:
        fail(f"cannot run {args.foldconv}: {error.strerror}", 2)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        fail(f"`{shlex.join(command)}` exited with status {done.returncode}: {said}", 1)
    try:
        document = json.loads(done.stdout)
        document["images_per_second"] = float(document["images_per_second"])
        return document
    except (ValueError, KeyError, TypeError):
        fail(f"`{shlex.join(command)}` printed no JSON document with a number images_per_second", 1)


def throughput(batches, seconds):
    """Images a second of an endless iterator, after a tenth of the time that doesn't count."""

    def run(seconds):
        clock, images = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - clock) < seconds:
            images += len(next(batches))
        return images / elapsed

    run(seconds / 10)
    return run(seconds)


def turns(round_, runs):
    """What a block of each side gives, one after another; each round begins with another side."""
    names = list(runs)
    first = round_ % len(names)
    return {name: runs[name]() for name in names[first:] + names[:first]}


def say(round_, args, what, speeds):
    said = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    print(f"round {round_ + 1}/{args.rounds}{what}: {said} images/s", file=sys.stderr)


# Reporting


class Spread:
    """Median, least and greatest of the rounds."""

    def __init__(self, values):
        values = list(values)
        self.median, self.min, self.max = statistics.median(values), min(values), max(values)

    def __str__(self):
        return f"{self.median:.2f} | {self.min:.2f} | {self.max:.2f}"


def over(rounds, ours, theirs):
    """One side over another, each round by itself, since neighbours in time meet the same machine."""
    return Spread(row[ours] / row[theirs] for row in rounds)


def table(title, rounds, names):
    """A row a side: its throughput, and foldconv's over it."""
    lines = [f"| {title} | images/s | foldconv / it | min | max |", "|---|---:|---:|---:|---:|"]
    for name in names:
        speed = statistics.median(row[name] for row in rounds)
        lines.append(f"| {name} | {speed:,.0f} | {over(rounds, 'foldconv', name)} |")
    return "\n".join(lines)


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def gpu(args):
    if args.device == "cpu":
        return {}
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"gpu": torch.cuda.get_device_name(), "driver": driver.stdout.split("\n")[0], **versions}


def setup(args, *modules):
    """What the numbers depend on; of the modules their releases."""
    return {
        "rounds": args.rounds,
        "threads": args.threads,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        **{module.__name__: module.__version__ for module in (torch, *modules)},
        "device": args.device,
        "cpu": cpu_model(),
        **gpu(args),
        "command": shlex.join(["python", *sys.argv]),
    }


def report(args, setup, blocks, text, results):
    """Prints the table and how it was measured, and writes all of it where --json says."""
    versions = ", ".join(f"{key} {setup[key]}" for key in ("torch", "torchvision") if key in setup)
    print(text)
    print(
        f"\nMedians of n = {args.rounds} interleaved rounds, {blocks}, {args.threads} threads or workers, "
        f"OMP_WAIT_POLICY={setup['OMP_WAIT_POLICY']}, {versions}, {setup.get('gpu', setup['cpu'])}; a ratio is the median of the rounds' "
        "ratios."
        f"\n\nCommand: `{setup['command']}`"
    )
    if args.json:
        args.json.write_text(json.dumps({**setup, **results}, indent=2) + "\n")
