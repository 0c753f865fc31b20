"""Bundles that a stranger might send: each a copy of a good one with one thing changed, its checksums those of the changed files."""

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VALUES = [None, True, -1, 0, 2**31, 2**63, 10**400, -0.5, 1e300, "", "x", "../../etc/passwd", "a\nb", "\ud800", [], [1], [[]], {}, {"": 0}, {"x": []}]  # fmt: skip


def copied(bundle, folder):
    """A copy of links to the files; what changes one writes it anew."""
    return shutil.copytree(bundle, folder, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def manifest(folder):
    return json.loads((folder / "bundle.json").read_text())


def write_manifest(folder, content):
    put(folder / "bundle.json", json.dumps(content).encode())


def seal(folder, *names):
    """Give bundle.json the checksums of changed files."""
    content = manifest(folder)
    for name in names:
        content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    write_manifest(folder, content)


def with_file(name, content):
    def change(folder):
        put(folder / name, content)
        seal(folder, name)

    return change


def with_json(name, **fields):
    def change(folder):
        content = json.loads((folder / name).read_text()) | fields
        put(folder / name, json.dumps({k: v for k, v in content.items() if v is not None}).encode())
        seal(folder, name)

    return change


def with_graph(name, edit):
    def change(folder):
        model = onnx.load(folder / "onnx" / name)
        edit(model, folder)
        put(folder / "onnx" / name, model.SerializeToString())
        seal(folder, f"onnx/{name}")

    return change


def with_field(path, value):
    def change(folder):
        content = manifest(folder)
        set_field(content, path, value)
        write_manifest(folder, content)

    return change


def set_field(content, path, value):
    *way, last = path
    for name in way:
        content = content[name]
    content[last] = value


def fields(content, way=()):
    """Paths of every field of a manifest, but a few of each long list or object in it."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in list(entries)[: 12 if way else None]:
        yield (*way, name)
        yield from fields(value, (*way, name))


def mutated_manifests(content):
    """bundle.json with one field of another type or size, or without it."""
    for path in fields(content):
        for value in VALUES:
            changed = copy.deepcopy(content)
            set_field(changed, path, value)
            yield path, value, changed
        changed = copy.deepcopy(content)
        *way, last = path
        parent = changed
        for name in way:
            parent = parent[name]
        del parent[last]
        yield path, "deleted", changed


def _endless(model, folder):
    """The output goes through a loop that ends after 2^62 rounds."""
    out = model.graph.output[0]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
    )  # fmt: skip
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == out.name:
                node.output[i] = "before"
    model.graph.initializer.extend([numpy_helper.from_array(np.array(2**62), "rounds"), numpy_helper.from_array(np.array(True), "true")])  # fmt: skip
    model.graph.node.append(helper.make_node("Loop", ["rounds", "true"], [], body=body))
    model.graph.node.append(helper.make_node("Identity", ["before"], [out.name]))


def _external(model, folder, location="../secret"):
    weight = max(model.graph.initializer, key=lambda w: len(w.raw_data))
    put(folder / "onnx" / Path(location).name, weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)


def _external_constant(model, folder):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="frontend.onnx")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def _functions(model, folder):
    model.functions.append(helper.make_function("", "F", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 18)]))  # fmt: skip


def _nested(model, folder):
    def inside(depth):
        nodes = [helper.make_node("Constant", [], [f"c{depth}"], value=numpy_helper.from_array(np.array(True)))]
        if depth:
            nodes.append(helper.make_node("If", [f"c{depth}"], [f"o{depth}"], then_branch=inside(depth - 1), else_branch=inside(depth - 1)))  # fmt: skip
        return helper.make_graph(nodes, f"g{depth}", [], [helper.make_tensor_value_info(f"{'o' if depth else 'c'}{depth}", TensorProto.BOOL, [])])  # fmt: skip

    model.graph.node.extend(inside(7).node)


def _flat_states(model, folder):
    """The encoder's keys have one axis."""
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == "n_layer_cross_k":
                node.output[i] = "deep"
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", ["deep", "flat"], ["n_layer_cross_k"]))
    output = next(o for o in model.graph.output if o.name == "n_layer_cross_k")
    output.CopyFrom(helper.make_tensor_value_info("n_layer_cross_k", TensorProto.FLOAT, ["n"]))


def _renamed_output(model, folder):
    model.graph.output[0].name = "something"
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[1].name], ["something"]))


def _linked(folder):
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    shutil.copy(folder / "vocab.json", outside / "vocab.json")
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").symlink_to(outside / "vocab.json")


def _linked_folder(folder):
    outside = folder.parent / "outside"
    shutil.move(folder / "onnx", outside)
    (folder / "onnx").symlink_to(outside)


def _swapped(folder):
    content = json.loads((folder / "vocab.json").read_text())
    one, two = list(content)[40:42]
    content[one], content[two] = content[two], content[one]
    put(folder / "vocab.json", json.dumps(content).encode())


def _fifo(name):
    def change(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _listed(name, content=b"raise SystemExit('ran')"):
    return with_file(name, content)


BIG = 10**12
# what the runtime itself refuses, in every language
REFUSED = {
    "no JSON": lambda f: put(f / "bundle.json", b"{"),
    "deep JSON": lambda f: put(f / "bundle.json", b'{"a":' * 100_000),
    "a list": lambda f: put(f / "bundle.json", b"[]"),
    "not UTF-8": lambda f: put(f / "bundle.json", b"\xff\xfe{}"),
    "format 3": with_field(("format",), 3),
    "format of digits": with_field(("format",), 10**400),
    "a FIFO as bundle.json": _fifo("bundle.json"),
    "a FIFO as vocab.json": _fifo("vocab.json"),
    "a FIFO as encoder": _fifo("onnx/encoder_model.onnx"),
    "a folder as vocab.json": lambda f: ((f / "vocab.json").unlink(), (f / "vocab.json").mkdir()),
    "a linked file": _linked,
    "a linked folder": _linked_folder,
    "no precisions": with_field(("precisions",), {}),
    "a list of precisions": with_field(("precisions",), ["fp32"]),
    "a graph outside": with_field(("precisions", "fp32", "encoder"), "../../etc/passwd.onnx"),
    "an absolute graph": with_field(("precisions", "fp32", "encoder"), "/etc/passwd.onnx"),
    "a graph of another name": with_field(("precisions", "fp32", "encoder"), "config.json"),
    "no prompts": with_field(("tokens", "prompts"), {}),
    "an empty prompt": with_field(("tokens", "prompts", "en"), []),
    "a long prompt": with_field(("tokens", "prompts", "en"), [1] * 5000),
    "a prompt of text": with_field(("tokens", "prompts", "en"), ["1"]),
    "a negative prompt": with_field(("tokens", "prompts"), {"en": [-1, 1, 1]}),
    "a prompt beyond the vocabulary": with_field(("tokens", "prompts"), {"en": [999_999, 1, 1]}),
    "a negative end": with_field(("tokens", "end"), -1),
    "an end beyond the vocabulary": with_field(("tokens", "end"), 999_999),
    "a negative added id": with_field(("tokens", "added"), {"-1": "x"}),
    "a huge added id": with_field(("tokens", "added"), {str(BIG): "x"}),
    "a number as added word": with_field(("tokens", "added"), {"5": 7}),
    "endless transcripts": with_field(("decoding", "most_tokens"), BIG),
    "negative transcripts": with_field(("decoding", "most_tokens"), -5),
    "an infinite rate": with_field(("decoding", "tokens_per_second"), 1e300),
    "a rate of text": with_field(("decoding", "tokens_per_second"), "8"),
    "a long window": with_field(("window_seconds",), 1e9),
    "a negative margin": with_field(("margin_seconds",), -1.0),
    "another length": with_field(("length",), "long"),
    "another rate": with_field(("sample_rate",), 2**32 - 1),
    "files of a list": with_field(("files",), []),
    "a short digest": with_field(("files", "vocab.json"), "abc"),
    "vocabulary id -1": with_json("vocab.json", a=-1),
    "vocabulary id 2^40": with_json("vocab.json", a=2**40),
    "vocabulary id 1.5": with_json("vocab.json", a=1.5),
    "a vocabulary of a list": with_file("vocab.json", b"[1, 2]"),
    "a vocabulary cut off": with_file("vocab.json", b'{"a": 1'),
    "no vocabulary": with_file("vocab.json", b""),
    "an endless loop": with_graph("frontend.onnx", _endless),
    "weights elsewhere": with_graph("encoder_model.onnx", _external),
    "weights beside": with_graph("step_decoder.onnx", lambda m, f: _external(m, f, "weights.bin")),
    "a constant beside": with_graph("encoder_model.onnx", _external_constant),
    "functions": with_graph("encoder_model.onnx", _functions),
    "branches in branches": with_graph("encoder_model.onnx", _nested),
    "states of one axis": with_graph("encoder_model.onnx", _flat_states),
    "an output of another name": with_graph("encoder_model.onnx", _renamed_output),
    "no ONNX": with_file("onnx/encoder_model.onnx", b"no ONNX"),
    "an empty graph": with_file("onnx/encoder_model.onnx", b""),
    "half a graph": lambda f: with_file("onnx/encoder_model.onnx", (f / "onnx/encoder_model.onnx").read_bytes()[:50_000])(f),
    "the wrong graph": lambda f: with_file("onnx/encoder_model.onnx", (f / "onnx/frontend.onnx").read_bytes())(f),
}  # fmt: skip
# what only a checksum tells; the C++ example computes none
DAMAGED = {
    "two tokens swapped": _swapped,
    "another vocabulary": lambda f: put(f / "vocab.json", b'{"a": 1}'),
    "a graph of another bundle": lambda f: put(f / "onnx/encoder_model.onnx", b"no ONNX"),
}
# what the workbench refuses besides, whose tools read more of a bundle
FOREIGN = {
    "an extra file": lambda f: put(f / "notes.txt", b""),
    "an extra module": lambda f: put(f / "numpy.py", b"raise SystemExit('ran')"),
    "an extra pyc": lambda f: put(f / "edge/__pycache__/words.cpython-311.pyc", b""),
    "extra data": lambda f: put(f / "onnx/encoder_model.onnx_data", b""),
    "an extra graph": lambda f: put(f / "onnx/encoder_model_fp16.onnx", b""),
    "an extra link": lambda f: (f / "onnx/more").symlink_to("/etc"),
    "an extra FIFO": lambda f: os.mkfifo(f / "pipe"),
    "a listed module": _listed("numpy.py"),
    "a listed package": _listed("torch/__init__.py"),
    "listed Node modules": _listed("node_modules/x/index.js"),
    "a listed library": _listed("edge/words.so"),
    "a listed pyc": _listed("edge/__pycache__/words.cpython-311.pyc"),
    "code for the tokenizer": with_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
    "code for the model": with_json("config.json", auto_map={"AutoConfig": "x.Y"}),
    "another model": with_json("config.json", model_type="lightglue"),
    "a kernel": with_json("config.json", _attn_implementation_internal="someone/kernel"),
    "a configuration of a list": with_file("config.json", b"[]"),
    "a graph of others with a loop": with_graph("sherpa_decoder.onnx", _endless),
    "no checkpoint": with_field(("checkpoint_sha256",), None),
    "a verification of a list": with_field(("verification",), []),
    "a verification without clients": with_field(("verification",), {"clients": [{}]}),
    "a measurement of nothing": with_field(("measurement",), {"systems": 3}),
}  # fmt: skip
