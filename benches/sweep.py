"""Seconds that a sweep of 1,000 trials takes before it trains anything: started where all are done, previewed, and reported on.

`make bench-sweep` runs it. The results are made up; the medians are of a few rounds, with the files in the page cache.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SWEEP = """data: {name: shapes}
net: {name: smallnet}
operator: {name: maconv}
axes:
  operator.bypass: [true, false]
  operator.intermediate: [%s]
seeds: 5
"""


def seconds(command):
    clock = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - clock, done.stdout


def result(trial):
    def form(parameters):
        top1 = random.uniform(70, 90)
        return {"top1": top1, "top5": 99.0, "loss": 0.6, "parameters": parameters, "macs": 1_000_000}

    return {
        "hash": trial["hash"], "seed": trial["seed"], "epochs": 200, "steps": 78200, "train_loss": 0.5,
        "expanded": form(9000), "compact": form(6000),
        "fold": {"agreement": 100.0, "largest_difference": 1e-6, "relative_difference": 1e-7},
        "seconds": 1000.0, "version": "0", "device": "cpu", "threads": 1,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foldconv", default="target/release/foldconv", help="the binary")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "a.yaml", Path(folder) / "out"
        file.write_text(SWEEP % ", ".join(str(n) for n in range(1, 101)))
        sweep = [args.foldconv, "sweep", str(file), "--out", str(out), "--device", "cpu"]
        preview = sweep + ["--dry-run", "--json"]
        for trial in json.loads(seconds(preview)[1])["trials"]:
            place = out / "trials" / trial["hash"]
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(result(trial)))
            (place / "state.json").write_text(json.dumps({"state": "done", "attempts": 1}))
        # The folder is a sweep's once it has its file.
        (out / "sweep.yaml").write_text(file.read_text())
        report = [args.foldconv, "report", str(out)]
        for name, command in [("preview", preview), ("sweep, all done, and its report", sweep), ("report", report)]:
            times = [seconds(command)[0] for _ in range(args.rounds)]
            print(f"{name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
