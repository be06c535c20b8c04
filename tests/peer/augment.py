"""What PIL and torchvision make of images: `augment.py FOLDER [IMAGES]`. IMAGES is a folder of real ones, of which some are taken
beside the made ones. Leaves raw bytes in FOLDER and prints a JSON list of cases: the file, width, height and channels of the input,
what is done, and the file, width and height of the result."""

import json
import random
import sys
from pathlib import Path

import numpy
from PIL import Image
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

print(json.dumps(cases))
