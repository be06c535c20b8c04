"""All that a report on a GPU needs, in one call: are folds exact there, what does a step take, how many trials an hour, beside PyTorch.

    benches/gpu.sh OUT.json
    .venv/bin/python benches/gpu.py --device cpu --minutes 3 --json gpu.json

The parts run in this order, each within its share of the time that is left, and OUT.json is written after each. A part is a list of
rows, the most important first: one that there is no time for is left out, and OUT.json lists it under `dropped`; one that fails
says why in its place. `--parts steps` runs that part alone and keeps the others of an OUT.json that is there, so that they can be
measured in several calls.

- doctor: devices, driver, versions.
- folds: three trials of a few epochs on made images in each precision; how far the logits of both forms are apart, all
  of it in float32.
- peers: images a second of PyTorch, eager in channels_last and compiled with mode="max-autotune", on the same networks in turns with
  foldconv's recorded steps (see peer.py). Compiling takes a minute or two and can't be cut short. maconv is compared with plain, and
  not compiled.
- packing: trials an hour of ablations/bypass.yaml on smallnet with 1, 2, 4, 8 and 16 side by side in one process, and 8 and
  16 in processes. Each runs for a while; the hour is
  extrapolated from the epochs a second of all trials together, evaluation included, to the 200 epochs of the file. With
  it what nvidia-smi says of the GPU meanwhile.
- steps: `foldconv bench train` for plain, maconv and mdconv, in branches and in the fastest way, with recorded steps
  (CUDA graphs) and without, at batch 128, 512 and 2048; of each the seconds of a step, its phases, waits and floor (the
  roofline: bytes over the measured bandwidth or FLOPs over the measured rate, whichever is longer, layer by layer).

`targets` then says of each target what was measured and whether it is met; null where its rows are missing. The sweep of PyTorch
that trials an hour are compared with is computed: one trial of maconv after another at the eager speed of training, evaluation and
start not counted.

Exit status: 0 measured, 1 a part failed (the others are there), 2 the request was wrong.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import peer
from common import ROOT

# Of the time that is left when a part begins.
SHARES = {"doctor": 0.1, "folds": 0.15, "peers": 0.6, "packing": 0.5, "steps": 1.0}
SIDE_BY_SIDE = (1, 2, 4, 8, 16)
# Seconds without which a row says nothing: trials that train side by side first make their images, and need two epochs.
LEAST = {"packing": 40}
EPOCHS, IMAGES = 200, 50000  # of ablations/bypass.yaml


class Clock:
    """How much of a part's time is left."""

    def __init__(self, seconds):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


# Each part gives its rows, the most important first: a name, and a function that measures it in so many seconds. What is dropped may
# be any row, so none depends on another.


def run(args, *arguments):
    command = [str(args.foldconv), *map(str, arguments), "--device", args.device]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise RuntimeError(f"`{shlex.join(command)}` exited with status {done.returncode}: {said}")
    return done.stdout


def doctor(args):
    yield "doctor", lambda _: json.loads(run(args, "doctor", "--json"))


def folds(args):
    precisions = ("fp32", "bf16") if args.device == "cpu" else ("fp32", "tf32", "bf16")
    for operator in ("maconv", "plain", "mdconv"):
        for precision in precisions:
            yield f"{precision} {operator}", partial(fold, args, precision, operator)


def fold(args, precision, operator, _seconds):
    trial = f"data: {{name: shapes, train: 2048, test: 1000}}\nnet: {{name: smallnet}}\noperator: {{name: {operator}}}\n"
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / "trial.yaml", Path(folder) / "out"
        config.write_text(f"{trial}train: {{epochs: {args.fold_epochs}, batch: 128, precision: {precision}}}\n")
        run(args, "train", config, "--out", out)
        result = json.loads((out / "result.json").read_text())
    return {"precision": precision, "operator": operator, "fold": result["fold"]}


def peers(args):
    sides = list(peer.SIDES)
    for net, operator, sides in (
        ("smallnet", "plain", sides),
        ("mobilenet_v2_224", "plain", sides),
        ("mobilenet_v2", "plain", sides),
        ("smallnet", "maconv", sides[:2]),
        ("mobilenet_v2", "maconv", sides[:2]),
    ):
        batch = peer.NETWORKS[net].batch // args.divide
        one = argparse.Namespace(**{**vars(args), "nets": [net], "ops": [operator], "sides": sides, "batch": batch})
        yield f"{net} {operator}", lambda _, one=one: {**peer.measure(one)[0], "batch": one.batch, "sides": one.sides}


def packing(args):
    most = SIDE_BY_SIDE if args.device != "cpu" else SIDE_BY_SIDE[:2]
    # Few and many first: between them lies the best.
    for k in sorted(most, key=lambda k: (k not in (1, 8), k)):
        yield f"{k} side by side", partial(packed, args, k, "worker")
    for k in (8, 16):
        if args.device != "cpu":
            yield f"{k} side by side, as processes", partial(packed, args, k, "processes")


def packed(args, k, share, seconds):
    data = "{name: cifar10, augment: {pad: 2, crop: 32, flip: true}}"
    if "FOLDCONV_DATA" not in os.environ:
        data = f"{{name: shapes, train: {IMAGES}, test: 10000, augment: {{pad: 2, crop: 32, flip: true}}}}"
    with tempfile.TemporaryDirectory() as folder, Sampler(args) as sampler:
        side = ["--per-gpu", str(k), "--share", share] if args.device != "cpu" else ["--jobs", str(k)]
        command = [str(args.foldconv), "sweep", "ablations/bypass.yaml", "--out", f"{folder}/out", "--set", f"data={data}"]
        command += ["--set", "axes.net=[{name: smallnet}]", "--device", args.device, *side]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
        said = process.communicate()[1].decode(errors="replace").strip().splitlines()
        rate, trials = epochs_a_second(Path(folder) / "out" / "trials")
        return {
            "side_by_side": k,
            "share": share,
            "seconds": seconds,
            "trials_seen": trials,
            "trials_an_hour": rate * 3600 / EPOCHS,
            "gpu": sampler.summary(),
            "said": said[-1] if said else "",
        }


def epochs_a_second(trials):
    """Of all trials together, each from its first epoch to its last: starting is not in it."""
    rates = []
    for metrics in trials.glob("*/metrics.csv"):
        with metrics.open() as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        if len(seconds) > 1:
            rates.append((len(seconds) - 1) / (seconds[-1] - seconds[0]))
    return sum(rates), len(rates)


class Sampler:
    """Twice a second, how busy the GPU is and how much of its memory is used."""

    def __init__(self, args):
        self.on = args.device != "cpu"

    def __enter__(self):
        if self.on:
            query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "500"]
            self.process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        if self.on:
            self.process.kill()
            self.process.wait()

    def summary(self):
        if not self.on:
            return None
        self.process.terminate()
        rows = [line.split(",") for line in self.process.communicate()[0].splitlines() if line.count(",") == 1]
        busy, used = ([float(row[at]) for row in rows] for at in (0, 1))
        return {"median_busy_percent": statistics.median(busy), "most_memory_mib": max(used)} if rows else None


def steps(args):
    recorded = ("off",) if args.device == "cpu" else ("auto", "off")
    for batch in (128, 512, 2048):
        for operator in ("plain", "maconv", "mdconv"):
            for exec_ in ("auto", "branches"):
                for graphs in recorded:
                    what = {"operator": operator, "exec": exec_, "graphs": graphs, "batch": batch // args.divide}
                    yield f"{operator} {exec_} graphs={graphs} {batch}", partial(step, args, what)


def step(args, what, _seconds):
    settings = {"operator.name": "operator", "train.exec": "exec", "train.graphs": "graphs", "train.batch": "batch"}
    command = ["bench", "train", peer.CONFIG, "--json", "--steps", args.steps, "--warmup", 5]
    for key, name in settings.items():
        command += ["--set", f"{key}={what[name]}"]
    return {**what, **json.loads(run(args, *command))}


PARTS = {"doctor": doctor, "folds": folds, "peers": peers, "packing": packing, "steps": steps}


def measure(part, args, clock):
    """The rows that there is time for, and the names of the others. A row gets an equal share of the time; one that can't be cut short
    is taken to need what the longest before it did."""
    planned = list(PARTS[part](args))
    rows, dropped, longest = [], [], 0
    for at, (name, row) in enumerate(planned):
        least = LEAST.get(part, 5) if args.device != "cpu" else 5
        if clock.left() < max(longest, least):
            dropped.append(name)
            continue
        begun = time.monotonic()
        try:
            done = row(max(least, clock.left() / (len(planned) - at)))
        except (RuntimeError, OSError, ValueError, KeyError, SystemExit) as error:
            print(f"gpu.py: {part}, {name}: {error}", file=sys.stderr)
            done = {"failed": str(error)}
        rows.append({"row": name, **done})
        longest = max(longest, time.monotonic() - begun)
    return rows, dropped


# Targets


def targets(results):
    """What is to be reached, and whether it is."""
    peers = {row["row"]: row for row in results.get("peers", []) if "rounds" in row}
    packing = [row["trials_an_hour"] for row in results.get("packing", []) if row.get("trials_seen")]

    def over(name, other):
        return common.over(peers[name]["rounds"], "foldconv", other).median if name in peers else None

    def seconds(name):
        return statistics.median(block["step_seconds"] for block in peers[name]["foldconv"]) if name in peers else None

    def ratio(a, b):
        return a / b if a and b else None

    eager = statistics.median(done["eager"] for done in peers["smallnet maconv"]["rounds"]) if "smallnet maconv" in peers else None
    sequential = eager and eager * 3600 / (EPOCHS * IMAGES)
    found = []
    for net in ("smallnet", "mobilenet_v2"):
        found += [
            (f"{net}, batch 128: over PyTorch eager", over(f"{net} plain", "eager"), ">=", 4.0),
            (f"{net}, batch 128: over torch.compile, max-autotune", over(f"{net} plain", "compile"), ">=", 1.2),
            (f"{net}, batch 128: maconv's step over plain's", ratio(seconds(f"{net} maconv"), seconds(f"{net} plain")), "<=", 1.2),
        ]
    found += [
        ("smallnet: trials an hour over those of a sequential sweep of PyTorch", ratio(max(packing, default=None), sequential), ">=", 10.0),
        ("mobilenet_v2 x1.0, 224x224, bf16, batch 256: over torch.compile", over("mobilenet_v2_224 plain", "compile"), ">=", 1.0),
    ]
    return [{"target": name, "wanted": f"{sign} {wanted}", "measured": value, "met": met(value, sign, wanted)} for name, value, sign, wanted in found]


def met(value, sign, wanted):
    if value is None:
        return None
    return value >= wanted if sign == ">=" else value <= wanted


def parse():
    parser = common.parser("All that a report on a GPU needs, in one call.")
    parser.add_argument("--minutes", type=float, default=9, help="time for all of it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--steps", type=common.positive, default=30, help="timed steps of a block")
    parser.add_argument("--warmup", type=common.positive, default=5, help="untimed steps before them")
    parser.add_argument("--fold-epochs", type=common.positive, default=3, help="epochs of a trial that is folded")
    parser.add_argument("--divide", type=common.positive, default=1, help="makes every batch so much smaller, to try the script out")
    parser.set_defaults(rounds=3)
    args = common.parse(parser)
    if not args.json:
        parser.error("--json FILE: where the results go")
    return args


def main():
    args = parse()
    end = time.monotonic() + 60 * args.minutes
    results = json.loads(args.json.read_text()) if args.json.exists() else {"dropped": {}}
    results["setup"] = common.setup(args)
    for part in args.parts:
        clock = Clock((end - time.monotonic()) * (SHARES[part] if part != args.parts[-1] else 1.0))
        print(f"{part}: {clock.seconds:.0f} s", file=sys.stderr)
        results[part], results["dropped"][part] = measure(part, args, clock)
        results["targets"] = targets(results)
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    failed = [row["row"] for part in args.parts for row in results[part] if "failed" in row]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
