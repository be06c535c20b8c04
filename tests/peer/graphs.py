"""graphs.py make FOLDER SIZE NAME=FORMATS...: exports networks as NAME.pt2, NAME.onnx (by the exporter that traces), NAME.dynamo.onnx (by the newer
one), NAME.pt (traced) and NAME.script.pt, as FORMATS (comma-separated) says, with an input NAME.x, its outputs NAME.y.npz, and counts.
graphs.py train FOLDER SIZE NAME=FORMATS...: exports networks as `make` does, in evaluation; then trains each in float64 and prints its losses.
graphs.py run FOLDER FILE...: runs each file, NAME.….onnx or NAME.….pt, and prints its largest relative difference from an output; ONNX files are
checked."""

import copy
import json
import sys
from pathlib import Path

import numpy
import torch
import torchvision
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


# Steps of training whose losses are compared.
STEPS = 3


@torch.no_grad()
def settle(model):
    """Gives batch norms running statistics and affine values of sane size, so that outputs neither vanish nor blow up."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda like, low, high: low + (high - low) * torch.rand(like.shape, generator=generator)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(draw(module.running_mean, -0.2, 0.2))
            module.running_var.copy_(draw(module.running_var, 0.5, 1.5))
            if module.affine:
                module.weight.data.copy_(draw(module.weight, 0.7, 1.3))
                module.bias.data.copy_(draw(module.bias, -0.2, 0.2))


def count(model, x):
    """Convolutions, and multiply-accumulates of these and of matrix products as PyTorch counts them, of one forward pass; and its output."""
    called = 0

    def hook(module, inputs, output):
        nonlocal called
        called += 1

    layers = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, layers)]
    # PyTorch's counter passes over fused attention, so both places where it fuses are told not to.
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(x)
    torch.backends.mha.set_fastpath_enabled(True)
    for handle in hooks:
        handle.remove()
    # A multiplication and an addition each.
    return [called, counter.get_total_flops() // 2], output


class Block(torch.nn.Module):
    """A 3x3 and a 1x1 convolution and the identity, each with its batch norm, added; deployed, one 3x3 convolution."""

    def __init__(self, channels, out, deploy):
        super().__init__()
        conv = lambda size: torch.nn.Sequential(torch.nn.Conv2d(channels, out, size, padding=size // 2, bias=False), torch.nn.BatchNorm2d(out))
        branches = [conv(3), conv(1)] + [torch.nn.BatchNorm2d(out)] * (channels == out)
        self.branches = torch.nn.ModuleList([torch.nn.Conv2d(channels, out, 3, padding=1)] if deploy else branches)

    def forward(self, x):
        return torch.nn.functional.silu(sum(branch(x) for branch in self.branches))


class UNet(torch.nn.Module):
    """A map of classes larger than the image: two steps down, two up by transposed convolutions, with the maps of the way down."""

    def __init__(self, deploy):
        super().__init__()
        block = lambda channels, out: torch.nn.Sequential(Block(channels, out, deploy), Block(out, out, deploy))
        self.down = torch.nn.ModuleList([block(3, 8), block(8, 16), block(16, 32)])
        self.wide = torch.nn.ModuleList([torch.nn.ConvTranspose2d(32, 16, 2, 2), torch.nn.ConvTranspose2d(16, 8, 2, 2)])
        self.up = torch.nn.ModuleList([block(32, 16), block(16, 8)])
        self.head = torch.nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.down[0](x)
        maps = []
        for down in self.down[1:]:
            maps.append(x)
            x = down(torch.nn.functional.max_pool2d(x, 2))
        for wide, up in zip(self.wide, self.up):
            x = up(torch.cat([wide(x), maps.pop()], 1))
        x = torch.nn.functional.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")
        return torch.nn.functional.interpolate(x, size=(96, 80), mode="bilinear", align_corners=True)


class Detector(torch.nn.Module):
    """Boxes and classes on two scales: a tuple of two maps, whose paths meet by upsampling."""

    def __init__(self, deploy):
        super().__init__()
        self.down = torch.nn.ModuleList([Block(3, 8, deploy), Block(8, 16, deploy), Block(16, 32, deploy)])
        self.squeeze = torch.nn.Sequential(torch.nn.Conv2d(64, 16, 1, bias=False), torch.nn.BatchNorm2d(16))
        self.merge = Block(32, 16, deploy)
        self.heads = torch.nn.ModuleList([torch.nn.Conv2d(16, 7, 1), torch.nn.Conv2d(16, 7, 1)])

    def forward(self, x):
        fine, coarse = None, x
        for down in self.down:
            fine, coarse = coarse, torch.nn.functional.max_pool2d(down(coarse), 2)
        pooled = torch.nn.functional.max_pool2d(coarse, 5, 1, 2)
        coarse = torch.relu(self.squeeze(torch.cat([coarse, pooled], 1)))
        fine = self.merge(torch.cat([fine, torch.nn.functional.interpolate(coarse, scale_factor=2.0)], 1))
        return self.heads[0](fine), self.heads[1](coarse).sigmoid()


class Framed(torch.nn.Module):
    """A block behind masks that are written in place through views, as shifted windows of attention are masked."""

    def __init__(self, deploy):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(3, 8, deploy), Block(8, 8, deploy)])

    def forward(self, x):
        constant, own = torch.zeros(1, 1, *x.shape[2:]), x.new_zeros(x.shape[2:])
        constant[..., 5:-9, 3:] = 1.0
        own[:7, :] = 0.5
        own[7:, 4:] = 2.0
        return self.blocks[1](self.blocks[0](x * constant) * own)


class PaddedNorm(torch.nn.BatchNorm2d):
    """A batch norm whose result is padded with its value at 0, which is written over each edge."""

    def __init__(self, channels, pad):
        super().__init__(channels)
        self.pad = pad

    def forward(self, x):
        y = torch.nn.functional.pad(super().forward(x), [self.pad] * 4)
        edge = (self.bias - self.running_mean * self.weight / torch.sqrt(self.running_var + self.eps)).view(1, -1, 1, 1)
        y[:, :, : self.pad], y[:, :, -self.pad :] = edge, edge
        y[..., : self.pad], y[..., -self.pad :] = edge, edge
        return y


class DiverseBlock(torch.nn.Module):
    """The four branches of a diverse branch block: KxK, 1x1, 1x1 before KxK, 1x1 before a mean; deployed, one KxK convolution."""

    def __init__(self, channels, out, size, deploy):
        super().__init__()
        pad = size // 2
        conv = lambda inputs, outputs, size, pad=0: torch.nn.Conv2d(inputs, outputs, size, padding=pad, bias=False)
        norm, after = torch.nn.BatchNorm2d, PaddedNorm
        branches = [
            [conv(channels, out, size, pad), norm(out)],
            [conv(channels, out, 1), norm(out)],
            [conv(channels, channels, 1), after(channels, pad), conv(channels, out, size), norm(out)],
            [conv(channels, out, 1), after(out, pad), torch.nn.AvgPool2d(size, 1), norm(out)],
        ]
        deployed = [[torch.nn.Conv2d(channels, out, size, padding=pad)]]
        self.branches = torch.nn.ModuleList(torch.nn.Sequential(*branch) for branch in (deployed if deploy else branches))

    def forward(self, x):
        return torch.relu(sum(branch(x) for branch in self.branches))


class Diverse(torch.nn.Sequential):
    """Two diverse branch blocks, 3x3 and 5x5, and a classifier."""

    def __init__(self, deploy):
        mean = torch.nn.AdaptiveAvgPool2d(1)
        super().__init__(DiverseBlock(3, 8, 3, deploy), DiverseBlock(8, 12, 5, deploy), mean, torch.nn.Flatten(), torch.nn.Linear(12, 10))


class Computed(torch.nn.Module):
    """Two blocks around shapes and indexes that the code computes, a part without autocast, and a table that is looked up."""

    def __init__(self, deploy):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(3, 8, deploy), Block(8, 8, deploy)])
        self.last = torch.nn.Linear(8, 10)
        self.order = [2, 0, 1, 3]
        self.register_buffer("table", torch.linspace(-1, 1, 5))
        self.register_buffer("index", torch.arange(16).reshape(4, 4) % 5)

    def forward(self, x):
        y = torch.nn.functional.max_pool2d(torch.relu(self.blocks[0](x)), 21)
        height, width = y.shape[2:]
        # To a multiple of 4 on the right, and a row below.
        y = torch.nn.functional.pad(y, (0, (4 - width % 4) % 4, 0, 4 // height), value=0.5)
        y = y[:, :, self.order] + self.table[self.index]
        with torch.autocast("cpu", enabled=False):
            y = y.float() * 2.0
            y = y + 0.1 * torch.cumsum(y, 2)
        first, second = y.reshape(y.shape[0], 2, y.shape[1] // 2, *y.shape[2:]).unbind(1)
        y = torch.relu(self.blocks[1](torch.cat([second, first], 1)))
        return self.last(y.mean((2, 3)))


class Recurrent(torch.nn.Module):
    """A block, and an LSTM over its rows, whose first state has the batch of the example."""

    def __init__(self, deploy):
        super().__init__()
        self.block, self.rows = Block(3, 8, deploy), torch.nn.LSTM(8, 10, batch_first=True, bidirectional=True)

    def forward(self, x):
        rows = torch.relu(self.block(x)).mean(3).transpose(1, 2)
        return self.rows(rows)[0][:, -1]


class Attentive(torch.nn.Module):
    """A block, and an attention between its pixels, which PyTorch traces as one operation."""

    def __init__(self, deploy):
        super().__init__()
        self.block, self.attention = Block(3, 8, deploy), torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = torch.nn.functional.max_pool2d(self.block(x), 8).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


class Operations(torch.nn.Module):
    """Operations behind a block, each with a result of its own, for a translation to be compared one by one."""

    def __init__(self, deploy):
        super().__init__()
        self.block, self.heads = Block(3, 8, deploy), torch.nn.Linear(8, 24)
        self.same = torch.nn.Conv2d(8, 8, (2, 3), padding="same", dilation=(1, 2))
        self.wide = torch.nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        generator = torch.Generator().manual_seed(1)
        draw = lambda *size: torch.randn(*size, generator=generator)
        for name, value in {
            "gain": draw(8), "shift": draw(8), "bias": draw(64, 64), "table": draw(8, 5), "mask": draw(64, 64) > -1.0,
            "rows": torch.tensor([3, -1, 0]), "columns": torch.tensor([[1], [-2]]), "places": torch.tensor([6, 1, 1]),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x):
        y = torch.nn.functional.max_pool2d(self.block(x), 8)
        tokens = y.flatten(2).transpose(1, 2)
        return (*self.products(tokens), *self.norms(y, tokens), *self.numbers(y), *self.moves(y), *self.windows(y), *self.writes(y))

    def products(self, tokens):
        attention = torch.nn.functional.scaled_dot_product_attention
        q, k, v = self.heads(tokens).reshape(-1, 64, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        flat = q.flatten(0, 1)
        return [
            attention(q, k, v), attention(q, k, v, is_causal=True), attention(q, k, v, attn_mask=self.mask),
            attention(q, k, v, attn_mask=self.bias, scale=0.3), torch.einsum("b h i d, b h j d -> b h i j", q, k),
            torch.baddbmm(flat, flat @ flat.mT, flat, beta=0.5, alpha=2.0), torch.addmm(self.bias[:, :4], self.bias, q[0, 0]),
        ]

    def norms(self, y, tokens):
        F = torch.nn.functional
        return [
            F.group_norm(y, 2, self.gain, self.shift), F.group_norm(y, 4), F.instance_norm(y), F.instance_norm(y, weight=self.gain, bias=self.shift),
            F.layer_norm(tokens, (8,)), F.layer_norm(tokens, (8,), self.gain, self.shift), F.layer_norm(tokens, (8,), self.gain),
            F.rms_norm(tokens, (8,), self.gain, 1e-3), F.rms_norm(tokens, (8,)), F.batch_norm(y, self.shift, self.gain.abs()),
            F.normalize(y, dim=1), torch.linalg.vector_norm(y, dim=(2, 3)), y.amax((2, 3)), y.amin(1, keepdim=True), y.mean(), y.sum(), y.min(),
            *y.max(1), *y.min(2, keepdim=True), y.sum((1, 3)), y.var((2, 3)), y.std(1, unbiased=False), *torch.var_mean(y, 1, correction=0),
            y.argmin(1), F.log_softmax(y, 1), y.var(), *y.topk(3, 1), *y.topk(2, 3, largest=False), y.topk(3, 1)[1] // 2,
        ]

    def numbers(self, y):
        F = torch.nn.functional
        return [
            F.softplus(y), F.logsigmoid(y), F.celu(y, 0.7), F.glu(y, 1), F.gelu(y), F.gelu(y, approximate="tanh"), F.silu(y), F.mish(y),
            F.hardswish(y), F.hardsigmoid(y), F.elu(y, 0.8), F.selu(y), F.relu6(y * 9), F.hardtanh(y, -0.1, 0.2), F.leaky_relu(y, 0.2),
            F.prelu(y, self.gain), torch.where(y > 0.1, y, -y), y.masked_fill(y <= 0, 0.5), y.clamp_min(0.2), y.clamp(max=0.3), y >= 0.1, y != 0.1,
            y < y.flip(3), (y > 0) & (y < 0.3), ~(y > 0) | (y > 0.5), y.square(), (y.abs() + 1).rsqrt(), torch.expm1(y), torch.log1p(y.abs()), 1 - y,
            torch.rsub(y, y.exp(), alpha=0.3), y.abs() ** 1.5, torch.remainder(y, 0.7), torch.div(y, 0.3, rounding_mode="floor"), y // 0.2,
            torch.addcmul(y, y, y, value=0.5), torch.addcdiv(y, y, y.abs() + 1), torch.sub(y, y.square(), alpha=0.5), y.argmax(1) // 3, y.argmax(1) % 3,
            y.argmax(1) * 2 - 9, torch.maximum(y, y.mT), torch.min(y, y.mT), y.argmax(1) / 3, y.long(), torch.cumsum(y, 1), y + y.argmax(1, keepdim=True),
        ]

    def moves(self, y):
        F = torch.nn.functional
        best = y.argmax(1, keepdim=True)
        return [
            y.roll((1, -2), (2, 3)), y.flip(3), y.flip((1, 2)), y.movedim(1, 3), y.movedim((0, 1), (1, 3)), y.swapaxes(1, 2), y.mT, y.repeat(1, 1, 2, 1),
            y.repeat_interleave(2, 3), *y.chunk(3, 1), *y.split([2, 6], 1), *y.split(3, 2), *y.unbind(3)[:2], y.gather(1, best), y[:, [1, 0]],
            y[:, :, self.rows, self.columns], y[..., self.rows], self.table[best.flatten(1)], F.embedding(best[:, 0], self.table),
            y.index_select(1, self.places), y.narrow(2, 1, 3), y[:, 1:7:2, ..., -3:], torch.stack([y, y * 2], 1), torch.cat([y, best], 1), y.unflatten(1, (2, 4)),
            y.flatten(1, 2), y[:, :1].squeeze(1), y.squeeze(1), y[:, :1].expand(-1, 3, -1, -1), y[:, :1].expand_as(y), y.tril(-1), y.triu(1),
            torch.zeros_like(y) + 1, torch.full_like(y, 2.5) * y, y.new_ones(3) * 2, F.pixel_shuffle(y, 2), F.pixel_unshuffle(y, 2), F.channel_shuffle(y, 4),
            F.pad(y, (1, 2, 0, 1), mode="reflect"), F.pad(y, (2, 1, 1, 0), mode="replicate"), F.pad(y, (1, -1), value=0.5), y.permute(0, -1, 1, 2),
        ]

    def windows(self, y):
        F = torch.nn.functional
        resize = lambda mode, size, **more: F.interpolate(y, size=size, mode=mode, **more)
        return [
            y.unfold(3, 3, 2), y.unfold(2, 4, 3), F.unfold(y, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)), resize("nearest", (5, 11)),
            resize("nearest-exact", (5, 11)), resize("bilinear", (13, 9)), resize("bicubic", (13, 9)), resize("bicubic", (5, 16), align_corners=True),
            F.interpolate(y, scale_factor=2.0), F.adaptive_avg_pool2d(y, (3, 4)), F.adaptive_max_pool2d(y, 4), F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
            F.max_pool2d(F.pad(-y, (0, 1, 0, 1)), 2, 1), F.max_pool2d(y, 3, 2, 1), F.max_pool2d(y, 2, 3, ceil_mode=True), F.avg_pool2d(y, (2, 3)), F.grid_sample(y, y[:, :2].permute(0, 2, 3, 1), align_corners=False),
            F.grid_sample(y, y[:, :2].permute(0, 2, 3, 1) * 2.0, "nearest", "border", True), self.same(y), self.wide(y),
        ]

    def writes(self, y):
        strided, parts, whole = y.clone(), y * 1.0, y + 0.5
        strided[:, 2::3] = strided[:, 2::3].sigmoid()
        strided[:, 0::3] = strided[:, 0::3] * 2.0 + self.gain[:3, None, None]
        part = parts[:, 1:3]
        part.mul_(2.0)
        parts[..., 0] = 0.5
        parts[:, 1, 2:4].zero_()
        before = whole[:, :2]
        whole.mul_(3.0)
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        return [strided, parts, part, before, whole, y + rows - 2.0 * columns]


OWN = {"operations": Operations, "attentive": Attentive, "unet": UNet, "detector": Detector, "framed": Framed, "diverse": Diverse, "computed": Computed, "recurrent": Recurrent}


def build(name, deploy=False):
    if name in OWN:
        return OWN[name](deploy)
    if name in torchvision.models.list_models(torchvision.models):
        return torchvision.models.get_model(name, weights=None)
    import timm

    return timm.create_model(name)


def arrays(outputs):
    """The numbers of each output."""
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [numpy.asarray(output.detach() if torch.is_tensor(output) else output) for output in outputs]


def difference(expected, found):
    """The largest difference of two outputs, relative to the largest number; infinite for another shape or type."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    expected, found = expected.astype(numpy.float64), found.astype(numpy.float64)
    return float(numpy.abs(found - expected).max() / max(numpy.abs(expected).max(), 1e-30))


def onnx(model, x, path, dynamo):
    preserve = torch.onnx.TrainingMode.PRESERVE
    more = {"dynamo": True} if dynamo else {"dynamo": False, "training": preserve, "do_constant_folding": False}
    torch.onnx.export(model, (x,), path, input_names=["images"], verbose=False, **more)


@torch.no_grad()
def make(folder, size, networks):
    facts = {}
    for name, formats in networks.items():
        torch.manual_seed(0)
        model = build(name).eval()
        settle(model)
        x = torch.randn(1, 3, size, size)
        before, output = count(model, x)
        if "pt2" in formats:
            torch.export.save(torch.export.export(model, (x,)), folder / f"{name}.pt2")
        if "onnx" in formats:
            onnx(model, x, folder / f"{name}.onnx", dynamo=False)
        if "dynamo.onnx" in formats:
            onnx(model, x, folder / f"{name}.dynamo.onnx", dynamo=True)
        if "pt" in formats:
            torch.jit.trace(model, x).save(folder / f"{name}.pt")
        if "script.pt" in formats:
            torch.jit.script(model).save(folder / f"{name}.script.pt")
        x.numpy().tofile(folder / f"{name}.x")
        numpy.savez(folder / f"{name}.y.npz", *arrays(output))
        facts[name] = {"before": before, "shape": list(x.shape)}
        if name in OWN:
            facts[name]["after"] = count(build(name, deploy=True).eval(), x)[0]
        elif hasattr(model, "stages") or hasattr(model, "blocks"):
            from timm.utils import reparameterize_model

            facts[name]["after"] = count(reparameterize_model(copy.deepcopy(model)), x)[0]
    # Exporters print too; the facts are the last line.
    print("\n" + json.dumps(facts))


def batch(step, size, classes):
    """The images and labels of a step; tests/common/steps.rs has the same."""
    number = lambda count: torch.arange(count, dtype=torch.float64) + step % 2 * 7919
    x = (number(4 * 3 * size * size) * 12.9898).sin().reshape(4, 3, size, size) * 2.0
    return x, (number(4) * 3.7).long() % classes


def train(folder, size, networks):
    make(folder, size, networks)
    losses = {}
    for name in networks:
        torch.manual_seed(0)
        model = build(name)
        settle(model)
        model = model.double().train()
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        losses[name] = []
        for step in range(STEPS):
            x, labels = batch(step, size, 1000)
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses[name].append(loss.item())
    print("\n" + json.dumps(losses))


def run(folder, files):
    errors = {}
    for file in files:
        name = file.split(".")[0]
        expected = list(numpy.load(folder / f"{name}.y.npz").values())
        size = round((numpy.fromfile(folder / f"{name}.x", numpy.float32).size / 3) ** 0.5)
        x = numpy.fromfile(folder / f"{name}.x", numpy.float32).reshape(1, 3, size, size)
        if file.endswith(".onnx"):
            import onnx
            import onnxruntime

            onnx.checker.check_model(folder / file)
            session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
            outputs = arrays(session.run(None, {"images": x}))
        else:
            outputs = arrays(torch.jit.load(folder / file)(torch.from_numpy(x)))
        assert len(outputs) == len(expected)
        differences = [difference(*pair) for pair in zip(expected, outputs)]
        errors[file] = max(differences)
        if not errors[file] < 1e-5:
            print(file, {at: of for at, of in enumerate(differences) if not of < 1e-5}, file=sys.stderr)
    print(json.dumps(errors))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode in ("make", "train"):
        import logging
        import warnings

        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
        networks = dict(spec.split("=") for spec in sys.argv[4:])
        {"make": make, "train": train}[mode](folder, int(sys.argv[3]), {name: of.split(",") for name, of in networks.items()})
    else:
        run(folder, sys.argv[3:])
