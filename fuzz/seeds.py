"""Files to begin with, for each target: seeds.py FOLDER. The corpus came of them; what the fuzzer needs is in corpus/."""

import collections
import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib

import numpy
import torch

FOLDER = sys.argv[1]
COUNT = collections.Counter()


def seed(target, data, choice=None):
    """With `choice` the first byte says what the others are."""
    COUNT[target] += 1
    os.makedirs(os.path.join(FOLDER, target), exist_ok=True)
    with open(os.path.join(FOLDER, target, f"seed-{COUNT[target]:02}"), "wb") as file:
        file.write((b"" if choice is None else bytes([choice])) + (data.encode() if isinstance(data, str) else data))


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    # The end is two blocks of zeros; Python fills it up to 10 KB.
    data = buffer.getvalue().rstrip(b"\0")
    return data + bytes(-len(data) % 512 + 1024)


def safetensors(tensors, metadata=None):
    header, data = {"__metadata__": metadata or {"by": "hand"}}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checkpoints():
    base = torch.arange(12.0).view(4, 3)
    state = collections.OrderedDict([("stem.conv.weight", base), ("stem.bn.bias", base[:, 1]), ("n", torch.tensor(3)), ("e", torch.zeros(0))])
    wrapped = {"epoch": 3, "state_dict": {"module." + key: value for key, value in state.items()}, "optimizer": {"state": {0: {"m": base}}}}
    for value in [state, wrapped, {"p": torch.nn.Parameter(base), "h": base.half(), "b": base > 1}]:
        seed("checkpoint", saved(value))
        for protocol in [2, 4]:
            seed("checkpoint", saved(value, _use_new_zipfile_serialization=False, pickle_protocol=protocol))
    torch.serialization.set_crc32_options(False)
    seed("checkpoint", saved(state))
    dump = lambda value, protocol=2: pickle.dumps(value, protocol=protocol)
    storages = dump(1) + dump((0, "cpu", torch.FloatStorage)) + struct.pack("<q", 4) + struct.pack("<4f", 1, 2, 3, 4) + dump([(1, 0, 1, 2)])
    table = dump(1) + dump((9, 0, torch.FloatTensor)) + struct.pack("<ii5q", 2, 0, 2, 2, 2, 1, 0)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return "9" if value == 9 else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": 9})
    system = dump({"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4}})
    seed("checkpoint", tar_of([("sys_info", system), ("pickle", buffer.getvalue()), ("tensors", table), ("storages", storages)]))
    seed("checkpoint", tar_of([("../pickle", b"x"), ("/etc/passwd", b"x")]))
    seed("checkpoint", safetensors({"a": ("F32", [2, 1], b"12345678"), "b": ("BF16", [], b"12"), "c": ("I64", [0], b""), "d": ("X9", [1], b"1")}))
    seed("checkpoint", safetensors({"stem.conv.wieght": ("F32", [4, 3], bytes(48)), "claims": ("F64", [1 << 58], b"1")}))
    for call in [b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR."]:
        magic = dump(0x1950A86A20F9469CFC6C) + dump(1001) + dump({"little_endian": True})
        seed("checkpoint", magic + b"\x80\x02" + call + dump([]))
    # Dicts that hold each other: a few bytes that mean thousands of tensors.
    shared = {"a": base}
    for _ in range(4):
        shared = {str(at): shared for at in range(8)}
    seed("checkpoint", saved(shared, _use_new_zipfile_serialization=False))


def models():
    config = {
        "data": {"name": "shapes", "train": 8, "test": 4, "seed": 0, "augment": {}}, "net": {"name": "smallnet", "width": 1.0},
        "operator": {"name": "mdconv", "intermediate": 4}, "apply_to": [], "train": {"epochs": 1}, "seed": 0,
    }
    about = {
        "version": "0", "form": "expanded", "config": config, "normalisation": {"mean": [0.5], "std": [1.0]}, "classes": ["a", "<b>"],
        "tuned": {"batch": 1, "device": "cpu", "threads": 1, "executions": {"a": "features"}},
    }
    tensors = {"stem.conv.weight": ("F32", [2, 1], b"12345678"), "h": ("F16", [2], b"1234"), "i": ("I64", [1], b"12345678"), "u": ("U8", [0], b"")}
    for change in [{}, {"form": "compact", "tuned": None}, {"config": {"data": {"name": "folder"}}}, {"classes": 3}]:
        seed("model", safetensors(tensors, {"foldconv": json.dumps({**about, **change})}))
    seed("model", safetensors(tensors))
    seed("model", safetensors({"claims": ("F64", [1 << 61, 4], b"1")}, {"foldconv": json.dumps(about)}))
    seed("model", struct.pack("<Q", 1 << 40) + b"{}")
    seed("model", b"")


def images():
    record = bytes([1, 2]) + bytes(range(256)) * 12
    seed("cifar", record, 0)
    seed("cifar", record[:-1], 0)
    pixels = numpy.arange(2 * 3072, dtype=numpy.uint8).reshape(2, 3072)[:1]
    for protocol in [0, 2, 4]:
        seed("cifar", pickle.dumps({b"data": pixels, b"fine_labels": [3], b"batch_label": b"x"}, protocol=protocol)[:8000], 1)
    seed("cifar", pickle.dumps({"data": numpy.asfortranarray(pixels), "fine_labels": [3, 4]}, protocol=2), 1)
    seed("cifar", "\n".join(f"class {at}" for at in range(100)), 2)
    seed("cifar", tar_of([("cifar-100-binary/train.bin", record), ("cifar-100-binary/fine_label_names.txt", b"a\nb")]), 3)
    seed("cifar", tar_of([("../../train.bin", record[:64])]), 3)
    seed("cifar", gzip.compress(tar_of([("cifar-100-python/meta", pickle.dumps({"fine_label_names": ["a"] * 100}, protocol=2))])), 4)

    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(flags, dims, name, kind, data):
        inner = element(6, struct.pack("<II", flags, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims))
        return element(14, inner + struct.pack("<HH", 1, len(name)) + name.ljust(4, b"\0") + element(kind, data))

    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    x, y = matrix(9, [32, 32, 3, 1], b"X", 2, bytes(3072)), matrix(6, [1, 1], b"y", 2, b"\x0a")
    other = matrix(6, [2, 2], b"z", 9, bytes(32))
    for body in [x + y, other + y + x, element(15, zlib.compress(x)) + element(15, zlib.compress(y)), y]:
        seed("svhn", head + body, 0)
    for body in [x, y, other]:
        seed("svhn", body, 1)
    seed("svhn", b"MATLAB 7.3".ljust(124) + b"\x00\x02IM", 0)

    idx = lambda dims, data: struct.pack(f">BBBB{len(dims)}I", 0, 0, 8, len(dims), *dims) + data
    for form, data in [(0, idx([1, 28, 28], bytes(784))), (1, idx([2], b"\1\2")), (2, idx([1, 28, 28], bytes(784))), (1, idx([2], b"\1\xff"))]:
        seed("mnist", data, form)
    seed("mnist", idx([60001, 28, 28], b""), 0)
    seed("mnist", idx([3], b"\1\2"), 1)
    seed("mnist", gzip.compress(idx([2], b"\1\2")), 1)
    seed("mnist", idx([1, 27, 28], bytes(784)), 0)


def texts():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    for folder in ["ablations", "experiments"]:
        for name in sorted(os.listdir(os.path.join(root, folder))):
            if name.endswith(".yaml"):
                seed("config", open(os.path.join(root, folder, name), encoding="utf-8").read())
    trial = "data: {name: cifar10}\nnet: {name: smallnet}\n"
    for more in [
        "operator: {name: dcd, layout: resnet_basic}\napply_to: [all, -stem]\nattention: {name: se}\0train.lr=.nan\0net.width=2",
        "vary: {net.width: [1, 2], operator.hidden: [0.5]}\nseeds: [1, 2]\nprune: {rule: median}\nbaseline: {operator: {name: plain}}",
        "a: &a [1, 2]\nb: [*a, *a]\nc: !tag {x: ~}\0a.b.c=[1]\0{name: tbc, blocks: 4}",
        "base: saved.yaml\nseed: -1\ntrain: {batch: 99999999999999999999}\0data.augment.crop=8",
    ]:
        seed("config", trial + more)
    for lines in [
        r"- {from: '^fc\.', to: 'classifier.'}" + "\n- drop: '^extra'\0fc.weight\0extra.x",
        r"[{from: '(\w)(?P<n>\d+)', to: '${n}$1$$'}, {drop: '\p{L}{3}'}]" + "\0a1\0abc",
        "- {from: a, to: aaaaaaaaaa}\n- {from: a, to: aaaaaaaaaa}\n- {from: '', to: x}\0a",
        "- {from: '(', to: a}", "- {form: a, to: b}", "a: [", r"- drop: '(\w{50}){50}'", "- {from: '(?i)x|y*?', to: ''}\0XyÿY",
    ]:
        seed("names", lines)


def states():
    form = {"top1": 80.0, "top5": 99.0, "loss": 0.5, "parameters": 5, "macs": 7}
    result = {
        "hash": "x", "seed": 0, "epochs": 1, "steps": 2, "train_loss": 0.5, "expanded": form, "compact": form, "fold": {"refused": "<script>"},
        "seconds": 1.0, "version": "0", "device": "cpu", "threads": 1,
    }
    record = {"state": "running", "owner": {"host": "a", "pid": 1, "started": 2}, "attempts": 1, "since": 3, "message": "m", "memory": 9}
    progress = {"epoch": 1, "epochs": 2, "step": 1, "steps": 4, "loss": 0.5, "top1": 1.0, "images_per_second": 3.0, "seconds_left": 1e300}
    rows = "epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n1,0.1,2,2,50,90,1000,1\n18446744073709551615,nan,inf,2,50,90,1,1\n"
    latency = {"device": "cpu", "threads": 1, "milliseconds": {"a": {"1": 0.5}}}
    sweep = "# <script>: the file of this sweep, as it was read\n{data: {name: shapes}, net: {name: smallnet}, axes: {seed: [1]}}"
    for choice, data in enumerate([record, result, progress, rows, [{"id": 1, "trials": ["../../x"]}], latency, sweep]):
        seed("sweep", data if isinstance(data, str) else json.dumps(data), choice)
    seed("sweep", json.dumps({"state": "done", "attempts": -1}), 0)
    numbers = [[80.0, 99.0, 0.5, 5, 7] * 2 + [99.9, 1e-6, 1.0, 2.0], [1e308, -1e308, 5e-324] * 6, [0.0] * 29, [-1.0] * 29, [2.0**63] * 29]
    numbers += [[100.0 + 1e-12 * at for at in range(29)], [10.0 ** (at * 11) for at in range(28)], [1e-300] * 29]
    for row in numbers:
        seed("report", struct.pack(f"<{len(row)}d", *row))


def graphs():
    """Small networks, as torch.export and the ONNX exporter write them."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.point = torch.nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(2, 4, 1)

        def forward(self, x):
            y = self.bn(self.conv(x)) + self.point(x)
            a, b = torch.nn.functional.relu(y).chunk(2, 1)
            return torch.cat([b, a], 1).mean([2, 3])

    class Shuffle(torch.nn.Module):
        def forward(self, x):
            n, c, h, w = x.shape
            return torch.nn.functional.interpolate(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w), scale_factor=2)

    for model in [Network().eval(), Shuffle()]:
        x = torch.randn(1, 2, 5, 4)
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(model, (x,)), buffer)
        archive = zipfile.ZipFile(buffer)
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        graph = json.loads(archive.read(name))
        # What names files of the machine is left out.
        for node in graph["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {key: value for key, value in node["metadata"].items() if key == "nn_module_stack"}
        text = json.dumps(graph, separators=(",", ":"))
        if len(text) < 8000:
            seed("pt2", text, 1)
        graph["graph_module"]["module_call_graph"], graph["graph_module"]["treespec_namedtuple_fields"] = [], {}
        # Without weights: the reader says that they are missing.
        seed("pt2", json.dumps(graph, separators=(",", ":"))[:8000], 1)
        small = io.BytesIO()
        with zipfile.ZipFile(small, "w", zipfile.ZIP_STORED) as out:
            for item in archive.namelist():
                if "sample_inputs" not in item and not item.endswith(".py"):
                    out.writestr(item, text if item == name else archive.read(item))
        if len(small.getvalue()) < 8191:
            seed("pt2", small.getvalue(), 0)
        for opset in [11, 17]:
            buffer = io.BytesIO()
            options = dict(training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, opset_version=opset, dynamo=False)
            torch.onnx.export(model, (x,), buffer, **options)
            seed("onnx", buffer.getvalue())
        torch.onnx.export(model, (x,), buffer := io.BytesIO(), dynamic_axes={"x": [0]}, input_names=["x"], dynamo=False)
        seed("onnx", buffer.getvalue())
    for damaged in [b"PK\3\4", b"{}", b'{"graph_module":{"graph":{"nodes":[]},"signature":{"input_specs":[],"output_specs":[]}},"schema_version":{"major":8}}']:
        seed("pt2", damaged, 1)
        seed("pt2", damaged, 0)

    def field(number, data):
        return bytes([number << 3 | 2, len(data)]) + data if len(data) < 128 else bytes([number << 3 | 2, len(data) % 128 | 128, len(data) // 128]) + data

    opset, node = field(8, b"\x10\x11"), lambda op, inputs, outputs, more=b"": field(
        1, b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs) + field(4, op) + more
    )
    output = field(12, field(1, b"y"))
    lists = field(5, field(1, b"value") + field(5, b"\x08\x01\x10\x07" + field(9, b"\0\0\0\0\0\1\0\0")) + b"\xa0\x01\x04")
    seed("onnx", opset + field(7, node(b"Relu", [b"y"], [b"y"]) + output))
    seed("onnx", opset + field(7, node(b"Constant", [], [b"n"], lists) + node(b"ConstantOfShape", [b"n"], [b"y"]) + output))
    seed("onnx", opset + field(7, field(1, b"") * 30 + output))


checkpoints()
graphs()
models()
images()
texts()
states()
print(dict(COUNT))
