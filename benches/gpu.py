"""All that a report on a GPU needs, in one call: are folds exact there, what does a step take, how many trials an hour, beside PyTorch.

    benches/gpu.sh OUT.json
    .venv/bin/python benches/gpu.py --device cpu --minutes 3 --json gpu.json

The parts run in this order, each within its share of the time that is left, and OUT.json is written after each: a run that
is cut short keeps what it has, and says what it has not.

- doctor: devices, driver, versions.
- folds: three trials of a few epochs on made images in each precision; how far the logits of both forms are apart, all
  of it in float32.
- steps: `foldconv bench train` for plain, maconv and mdconv, in branches and in the fastest way, with recorded steps
  (CUDA graphs) and without, at batch 128, 512 and 2048; of each the seconds of a step, its phases, waits and floor (the
  roofline: bytes over the measured bandwidth or FLOPs over the measured rate, whichever is longer, layer by layer).
- packing: trials an hour of ablations/bypass.yaml with 1, 2, 4, 8 and 16 side by side. Each runs for a while; the hour is
  extrapolated from the epochs a second of all trials together, evaluation included, to the 200 epochs of the file. With
  it what nvidia-smi says of the GPU meanwhile.
- peers: images a second of PyTorch, eager and compiled, on the same networks in turns with foldconv's (see peer.py), a row
  at a time for as long as there is time. Compiling takes a minute and can't be cut short, so this is last.

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
from pathlib import Path

import common
import peer
from common import ROOT

# Of the time that is left when a part begins.
SHARES = {"doctor": 0.1, "folds": 0.15, "steps": 0.4, "packing": 0.5, "peers": 1.0}
SIDE_BY_SIDE = (1, 2, 4, 8, 16)
EPOCHS = 200  # of ablations/bypass.yaml


class Clock:
    """How much of a part's time is left."""

    def __init__(self, seconds):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


def run(args, *arguments):
    command = [str(args.foldconv), *map(str, arguments), "--device", args.device]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        raise RuntimeError(f"`{shlex.join(command)}` exited with status {done.returncode}: {said}")
    return done.stdout


def doctor(args, _clock):
    return json.loads(run(args, "doctor", "--json"))


def folds(args, clock):
    rows = []
    trial = "data: {name: shapes, train: 2048, test: 1000}\nnet: {name: smallnet}\ntrain: {epochs: 3, batch: 128}\n"
    precisions = ("fp32", "bf16") if args.device == "cpu" else ("fp32", "tf32", "bf16")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "trial.yaml"
        for precision in precisions:
            for operator in ("plain", "maconv", "mdconv"):
                if clock.left() < 0:
                    return rows
                config.write_text(f"{trial}operator: {{name: {operator}}}\n")
                out = Path(folder) / f"{precision}-{operator}"
                run(args, "train", config, "--out", out, "--set", f"train.precision={precision}")
                result = json.loads((out / "result.json").read_text())
                rows.append({"precision": precision, "operator": operator, "fold": result["fold"]})
    return rows


def steps(args, clock):
    rows = []
    recorded = ("off",) if args.device == "cpu" else ("off", "auto")
    for batch in (128, 512, 2048):
        for operator in ("plain", "maconv", "mdconv"):
            for exec_ in ("branches", "auto"):
                for graphs in recorded:
                    if clock.left() < 0:
                        return rows
                    what = {"operator": operator, "exec": exec_, "graphs": graphs, "batch": batch}
                    settings = [f"operator.name={operator}", f"train.exec={exec_}", f"train.graphs={graphs}", f"train.batch={batch}"]
                    command = ["bench", "train", peer.CONFIG, "--json", "--steps", args.steps, "--warmup", 5]
                    for setting in settings:
                        command += ["--set", setting]
                    rows.append({**what, **json.loads(run(args, *command))})
    return rows


def peers(args, clock):
    """One row at a time, so that what time is left decides how many."""
    rows = []
    for net in peer.NETWORKS:
        for operator in ("plain", "maconv"):
            if clock.left() < 45:
                return rows
            begun = time.monotonic()
            one = argparse.Namespace(**{**vars(args), "nets": [net], "ops": [operator], "sides": list(peer.SIDES)})
            rows += peer.measure(one)
            took = time.monotonic() - begun
            if clock.left() < 1.2 * took:
                return rows
    return rows


def packing(args, clock):
    rows = []
    data = "{name: cifar10, augment: {pad: 2, crop: 32, flip: true}}"
    if "FOLDCONV_DATA" not in os.environ:
        data = "{name: shapes, train: 50000, test: 10000, augment: {pad: 2, crop: 32, flip: true}}"
    most = SIDE_BY_SIDE if args.device != "cpu" else SIDE_BY_SIDE[:2]
    for at, k in enumerate(most):
        seconds = clock.left() / (len(most) - at)
        if seconds < 5:
            break
        with tempfile.TemporaryDirectory() as folder, Sampler(args) as sampler:
            side = ["--per-gpu", str(k)] if args.device != "cpu" else ["--jobs", str(k)]
            command = [str(args.foldconv), "sweep", "ablations/bypass.yaml", "--out", f"{folder}/out", "--set", f"data={data}"]
            command += ["--set", "axes.net=[{name: smallnet}]", "--device", args.device, *side]
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.terminate()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()
            rate, trials = epochs_a_second(Path(folder) / "out" / "trials")
            rows.append(
                {
                    "side_by_side": k,
                    "seconds": seconds,
                    "trials_seen": trials,
                    "trials_an_hour": rate * 3600 / EPOCHS,
                    "gpu": sampler.summary(),
                    "said": said[-1] if said else "",
                }
            )
    return rows


def epochs_a_second(trials):
    """Of all trials together, each from its first epoch on."""
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


def parse():
    parser = common.parser("All that a report on a GPU needs, in one call.")
    parser.add_argument("--minutes", type=float, default=9, help="time for all of it")
    parser.add_argument("--steps", type=common.positive, default=30, help="timed steps of a block")
    parser.add_argument("--warmup", type=common.positive, default=5, help="untimed steps before them")
    parser.set_defaults(rounds=3, batch=peer.CONFIG_BATCH)
    args = common.parse(parser)
    if not args.json:
        parser.error("--json FILE: where the results go")
    return args


def main():
    args = parse()
    end, failed = time.monotonic() + 60 * args.minutes, False
    results = {"setup": common.setup(args), "missing": list(SHARES)}
    for name, share in SHARES.items():
        clock = Clock((end - time.monotonic()) * share)
        print(f"{name}: {clock.seconds:.0f} s", file=sys.stderr)
        try:
            results[name] = globals()[name](args, clock)
            results["missing"].remove(name)
        except (RuntimeError, OSError, ValueError, KeyError, SystemExit) as error:
            print(f"gpu.py: {name}: {error}", file=sys.stderr)
            results[name], failed = {"failed": str(error)}, True
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
