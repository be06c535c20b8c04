"""Pixels of image files as torchvision's ImageFolder gets them: `decode.py FOLDER` reads the paths in FOLDER/list, a line each, writes
their RGB pixels to FOLDER/pixels, one after another, and prints their [width, height] as JSON."""

import json
import sys

from torchvision.datasets.folder import default_loader

sizes = []
with open(f"{sys.argv[1]}/list") as names, open(f"{sys.argv[1]}/pixels", "wb") as pixels:
    for name in names:
        image = default_loader(name.rstrip("\n"))
        sizes.append(image.size)
        pixels.write(image.tobytes())
print(json.dumps(sizes))
