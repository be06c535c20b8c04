"""The cost of a step with each optimizer and option of a recipe, as multiples of SGD's, on the config of `foldconv bench train`.

`make bench-recipes` runs it. The recipes take turns in each round, which begins with another one; each is a process of its own.
"""

import statistics

import common

RECIPES = {
    "sgd": [],
    "sgd, Nesterov": ["nesterov=true"],
    "adamw": ["optimizer=adamw"],
    "lamb": ["optimizer=lamb"],
    "rmsprop": ["optimizer=rmsprop"],
    "sgd, ema": ["ema={decay: 0.999}"],
    "adamw, ema": ["optimizer=adamw", "ema={decay: 0.999}"],
    "sgd, clip_norm": ["clip_norm=1"],
}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=common.positive, default=100, help="steps of a block that are timed whole")
    args = common.parse(parser)

    def step(keys):
        sets = [word for key in ["lr=0.001", *keys] for word in ("--set", f"train.{key}")]
        return lambda: common.foldconv(args, "train", "benches/train.yaml", *sets, "--steps", str(args.steps))

    runs = {name: step(keys) for name, keys in RECIPES.items()}
    rounds = []
    for at in range(args.rounds):
        documents = common.turns(at, runs)
        rounds.append({name: document["step_seconds"] for name, document in documents.items()})
        update = {name: document["phases"]["optimizer_seconds"] for name, document in documents.items()}
        rounds[-1] |= {f"{name}: update": seconds for name, seconds in update.items()}
        common.say(at, args, "", {name: document["images_per_second"] for name, document in documents.items()})
    lines = ["| recipe | step, ms | update, ms | step / SGD's | min | max |", "|---|---:|---:|---:|---:|---:|"]
    for name in RECIPES:
        step, update = (1000 * statistics.median(row[key] for row in rounds) for key in (name, f"{name}: update"))
        lines.append(f"| {name} | {step:.2f} | {update:.2f} | {common.over(rounds, name, 'sgd')} |")
    common.report(args, common.setup(args), f"{args.steps} steps a block", "\n".join(lines), {"rounds_seconds": rounds})


if __name__ == "__main__":
    main()
