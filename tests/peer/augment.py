"""What PIL and torchvision make of images: `augment.py FOLDER [IMAGES]`. IMAGES is a folder of real ones, of which some are taken
beside the made ones. Leaves raw bytes in FOLDER and prints a JSON object. `cases` is a list: the file, width, height and channels of
the input, what is done, and the file, width and height of the result. `policies` and `spaces` are the tables and the magnitudes of the
policies of operations, `erased` and `cut` the boxes of RandomErasing and CutMix with the numbers that were drawn for them."""

import json
import random
import sys
from pathlib import Path
from unittest import mock

import numpy
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomErasing, autoaugment, v2
from torchvision.transforms import functional as F

folder = Path(sys.argv[1])
numbers = numpy.random.default_rng(0)
random.seed(0)


def made(width, height):
    """Colours that change slowly, and noise."""
    y, x = numpy.mgrid[:height, :width]
    waves = [128 + 100 * numpy.sin(x / (3 + c) + y / (7 - 2 * c)) for c in range(3)]
    return Image.fromarray(numpy.clip(numpy.stack(waves, 2) + numbers.normal(0, 30, (height, width, 3)), 0, 255).astype("uint8"))


images = [made(*size) for size in [(61, 47), (47, 61), (200, 150), (32, 32), (8, 8)]]
images += [made(33, 50).convert("L")]
# Every hue and saturation, and all greys.
images += [Image.fromarray(numbers.integers(0, 256, (64, 64, 3), dtype="uint8"))]
images += [Image.fromarray(numpy.repeat(numpy.arange(256, dtype="uint8")[None, :, None], 3, 2))]
if len(sys.argv) > 2:
    files = sorted(Path(sys.argv[2]).rglob("*.JPEG"))
    images += [Image.open(file).convert("RGB") for file in random.Random(0).sample(files, min(len(files), 24))]

cases = []


def case(source, done, result):
    name = f"{len(cases)}.out"
    (folder / name).write_bytes(result.tobytes())
    width, height = images[source].size
    channels = len(images[source].getbands())
    cases.append({"input": f"{source}.in", "width": width, "height": height, "channels": channels, **done,
                  "output": name, "out_width": result.width, "out_height": result.height})


for at, image in enumerate(images):
    (folder / f"{at}.in").write_bytes(image.tobytes())
    width, height = image.size
    for size in (24, 64, 224):
        w, h = random.randint((width + 1) // 2, width), random.randint((height + 1) // 2, height)
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        done = {"what": "resized_crop", "region": [left, top, w, h], "size": size}
        case(at, done, F.resized_crop(image, top, left, h, w, [size, size], antialias=True))
    for resize, crop in ((28, 24), (64, 57), (256, 224)):
        done = {"what": "test", "resize": resize, "size": crop}
        case(at, done, F.center_crop(F.resize(image, resize, antialias=True), crop))
    for what, factors in {
        "brightness": (0, 0.6, 1, 1.7),
        "contrast": (0, 0.35, 1, 2.2),
        "saturation": (0, 0.5, 1, 1.9),
        "hue": (-0.5, -0.13, 0, 0.04, 0.3, 0.5),
    }.items():
        for factor in factors:
            case(at, {"what": what, "factor": factor}, getattr(F, f"adjust_{what}")(image, factor))

# The magnitudes of every policy, of both signs, and some that no policy has.
MAGNITUDES = {
    "Identity": (0,),
    "ShearX": (0, 0.01, 0.1, 0.3, 0.99),
    "ShearY": (0, 0.01, 0.1, 0.3, 0.99),
    "TranslateX": (0, 1, 4.5, 32, 300),
    "TranslateY": (0, 1, 4.5, 32, 300),
    "Rotate": (0, 4.5, 30, 90, 135),
    "Brightness": (0, 0.3, 0.9, 0.99),
    "Color": (0, 0.3, 0.9, 0.99),
    "Contrast": (0, 0.3, 0.9, 0.99),
    "Sharpness": (0, 0.3, 0.9, 0.99),
    "Posterize": (1, 2, 4, 7, 8),
    "Solarize": (0, 1, 42.5, 128, 255),
    "AutoContrast": (0,),
    "Equalize": (0,),
    "Invert": (0,),
}
UNSIGNED = ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")


def float32(x):
    """Magnitudes are float32 numbers."""
    return float(torch.tensor(x, dtype=torch.float32))


for at, image in enumerate(images):
    for what, magnitudes in MAGNITUDES.items():
        for magnitude in (sign * m for m in magnitudes for sign in ((1,) if what in UNSIGNED or m == 0 else (1, -1))):
            done = {"what": what, "factor": float32(magnitude)}
            case(at, done, autoaugment._apply_op(image, what, done["factor"], InterpolationMode.NEAREST, None))

policies = {policy.value: autoaugment.AutoAugment(policy).policies for policy in autoaugment.AutoAugmentPolicy}


def space(table, width, height, bins, wide):
    rows = {name: [float(m) for m in magnitudes.reshape(-1)] for name, (magnitudes, _) in table.items()}
    signed = [name for name, (_, signed) in table.items() if signed]
    return {"width": width, "height": height, "bins": bins, "wide": wide, "magnitudes": rows, "signed": signed}


spaces = [space(autoaugment.TrivialAugmentWide()._augmentation_space(31), 224, 224, 31, True)]
for width, height in ((32, 32), (224, 224), (331, 100), (61, 47)):
    spaces.append(space(autoaugment.RandAugment()._augmentation_space(31, (height, width)), width, height, 31, False))
    auto = autoaugment.AutoAugment()._augmentation_space(10, (height, width))
    spaces.append(space(auto, width, height, 10, False))

torch.manual_seed(0)


def erased(width, height, scale, ratio):
    """RandomErasing.get_params, with the numbers that it draws."""
    uniform, randint, drawn, bounds = torch.Tensor.uniform_, torch.randint, [], []

    def log_uniform(self, *limits):
        result = uniform(self, *limits)
        drawn.append(result.item())
        return result

    def log_randint(low, high, **options):
        bounds.append(high)
        return randint(low, high, **options)

    with mock.patch.object(torch.Tensor, "uniform_", log_uniform), mock.patch.object(torch, "randint", log_randint):
        top, left, h, w, _ = RandomErasing.get_params(torch.zeros(3, height, width), scale, ratio, [0.0])
    # The ratio is the exponential in float32.
    tries = [[share, torch.exp(torch.tensor(ratio)).item()] for share, ratio in zip(drawn[::2], drawn[1::2])]
    box = [w, h] if bounds else None
    assert not bounds or bounds == [height - h + 1, width - w + 1]
    return {"width": width, "height": height, "tries": tries, "box": box}


def cut(size, alpha):
    """CutMix.make_params, with the numbers that it draws."""
    randint, drawn, cutmix = torch.randint, [], v2.CutMix(alpha=alpha, num_classes=2)
    sample = cutmix._dist.sample
    shares = []

    def log_randint(high, **options):
        result = randint(high, **options)
        drawn.append(result.item())
        return result

    def log_sample(shape):
        result = sample(shape)
        shares.append(float(result))
        return result

    with mock.patch.object(torch, "randint", log_randint), mock.patch.object(cutmix._dist, "sample", log_sample):
        made = cutmix.make_params([torch.zeros(2, 3, size, size)])
    return {"size": size, "share": shares[0], "centre": drawn, "box": made["box"], "adjusted": made["lam_adjusted"]}


boxes = [erased(w, h, s, (0.3, 3.3333)) for w, h in ((32, 32), (224, 200), (5, 9)) for s in ((0.02, 0.3333), (0.6, 1.0)) for _ in range(40)]
cuts = [cut(size, alpha) for size in (32, 57, 224) for alpha in (0.2, 1.0) for _ in range(40)]
print(json.dumps({"cases": cases, "policies": policies, "spaces": spaces, "erased": boxes, "cut": cuts}))
