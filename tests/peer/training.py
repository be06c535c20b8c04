"""training.py: prints what PyTorch and timm make of optimizers, schedules and losses in float64, as JSON. `steps`: a linear layer after 50
steps of each optimizer. `schedules`: the learning rates of 50 steps, 10 an epoch. `losses`: distillation of given logits."""

import json

import timm.optim
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
weight, bias, x = torch.randn(3, 2), torch.randn(3), torch.randn(5, 2)
logits = [torch.randn(6, 4), torch.randn(6, 4)]
STEPS, EPOCH = 50, 10


def trained(make, keys, clip=None):
    """The parameters after the steps; those with decay are in the first group."""
    w, b = (nn.Parameter(t.clone()) for t in (weight, bias))
    decay = keys.get("weight_decay", 0.01)
    groups = [{"params": [w], "weight_decay": decay}, {"params": [b], "weight_decay": decay if keys["decay_norm_and_bias"] else 0}]
    optimizer = make(groups)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + 0.1 * step)
        optimizer.zero_grad()
        (x @ w.T + b).sin().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_([w, b], clip)
        optimizer.step()
    return {"train": {"weight_decay": 0.01, **keys}, "weight": w.flatten().tolist(), "bias": b.tolist()}


cases = []
for everything in (True, False):
    keys = {"decay_norm_and_bias": everything}
    adam = lambda groups: torch.optim.AdamW(groups, lr=1, betas=(0.8, 0.99), eps=1e-7)
    lamb = lambda groups: timm.optim.Lamb(groups, lr=1, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=None)
    rmsprop = lambda groups: timm.optim.RMSpropTF(groups, lr=1, alpha=0.9, eps=1e-3, momentum=0.9)
    cases += [
        trained(lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.9), keys),
        trained(lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.9, nesterov=True), {"nesterov": True, **keys}),
        trained(lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.9), {"clip_norm": 0.7, **keys}, 0.7),
        trained(adam, {"optimizer": "adamw", "betas": [0.8, 0.99], "eps": 1e-7, **keys}),
        trained(lamb, {"optimizer": "lamb", **keys}),
        trained(rmsprop, {"optimizer": "rmsprop", "eps": 1e-3, **keys}),
    ]


def rates(make):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = make(optimizer)
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def warmed(optimizer):
    warm = schedulers.LinearLR(optimizer, start_factor=1 / 16, end_factor=1, total_iters=15)
    fall = schedulers.CosineAnnealingLR(optimizer, T_max=STEPS - 15, eta_min=0.01)
    return schedulers.SequentialLR(optimizer, [warm, fall], milestones=[15])


schedules = [
    ({"schedule": "cosine", "min_lr": 0.02}, lambda o: schedulers.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.02)),
    ({"schedule": "cosine", "warmup": 1.5, "min_lr": 0.01}, warmed),
    ({"schedule": "linear", "min_lr": 0.05}, lambda o: schedulers.LinearLR(o, start_factor=1, end_factor=0.25, total_iters=STEPS)),
    ({"schedule": "step", "step_size": 2, "gamma": 0.3}, lambda o: schedulers.StepLR(o, step_size=2 * EPOCH, gamma=0.3)),
    ({"schedule": "multi_step", "milestones": [1, 3.5]}, lambda o: schedulers.MultiStepLR(o, milestones=[EPOCH, 35], gamma=0.1)),
    ({"schedule": "exponential", "gamma": 0.5}, lambda o: schedulers.ExponentialLR(o, gamma=0.5 ** (1 / EPOCH))),
    ({"schedule": "one_cycle"}, lambda o: schedulers.OneCycleLR(o, max_lr=0.2, total_steps=STEPS, cycle_momentum=False)),
    ({"schedule": "one_cycle", "pct_start": 0.5, "div_factor": 10, "final_div_factor": 100},
     lambda o: schedulers.OneCycleLR(o, max_lr=0.2, total_steps=STEPS, cycle_momentum=False, pct_start=0.5, div_factor=10,
                                     final_div_factor=100)),
]

student, teacher = logits
losses = []
for temperature in (1.0, 4.0):
    soft = nn.functional.kl_div((student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean")
    losses.append({"temperature": temperature, "soft": (soft * temperature**2).item()})

print(json.dumps({
    "weight": weight.flatten().tolist(), "bias": bias.tolist(), "x": x.flatten().tolist(), "steps": cases,
    "schedules": [{"train": {"lr": 0.2, **keys}, "rates": rates(make)} for keys, make in schedules],
    "student": student.flatten().tolist(), "teacher": teacher.flatten().tolist(), "losses": losses,
    "hard": nn.functional.cross_entropy(student, teacher.argmax(1)).item(),
}))
