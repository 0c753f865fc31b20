"""Small edits to ONNX graphs shared by several modules: find a merged decoder's branches or its tied matrix, replace a node."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx
from onnx import helper

LAYER = re.compile(r"\blayers\.(\d+)\b")


def branches(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The two branches of a merged decoder; none for other graphs."""
    return [
        a.g for n in model.graph.node if n.op_type == "If" for a in n.attribute if a.type == onnx.AttributeProto.GRAPH
    ]


def replace(graph: onnx.GraphProto, node: onnx.NodeProto, by: Sequence[onnx.NodeProto]) -> None:
    """Replace a node by others."""
    at = list(graph.node).index(node)
    graph.node.remove(node)
    for i, new in enumerate(by):
        new.name = f"{node.name}_{i}"
        graph.node.insert(at + i, new)


def name_weights_by_use(model: onnx.ModelProto) -> None:
    """Name and order the weights of a graph by the node that reads them first.

    Optimum merges equal weights of both branches in the iteration order of a set, so which name survives, and where, would differ between
    processes, and with it every checksum.
    """
    weights = {i.name: i for i in model.graph.initializer}
    new: dict[str, str] = {}
    for graph in (model.graph, *branches(model)):
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name in weights and name not in new:
                    first = f"{node.name or node.output[0]}.{i}"
                    new[name] = first if first not in new.values() else f"{first}_of_branch_1"
    for graph in (model.graph, *branches(model)):
        for node in graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = new.get(name, name)
    del model.graph.initializer[:]
    for old, name in new.items():
        weights[old].name = name
        model.graph.initializer.append(weights[old])


def hoist_transposes(model: onnx.ModelProto) -> int:
    """Move transposes of weights out of the branches of a merged decoder to its main graph; returns how many moved.

    In the main graph onnxruntime folds a transposed weight at load. Inside a branch it transposes the whole embedding again for every token.
    """
    weights = {i.name for i in model.graph.initializer}
    hoisted: dict[str, str] = {}  # weight -> its transpose in the main graph
    nodes = []
    for branch in branches(model):
        for node in [n for n in branch.node if n.op_type == "Transpose" and n.input[0] in weights]:
            weight = node.input[0]
            if weight not in hoisted:
                hoisted[weight] = f"{weight}_transposed_once"
                nodes.append(helper.make_node("Transpose", [weight], [hoisted[weight]], perm=[1, 0]))
            for other in branch.node:
                for i, name in enumerate(other.input):
                    if name == node.output[0]:
                        other.input[i] = hoisted[weight]
            branch.node.remove(node)
    for node in nodes:
        model.graph.node.insert(0, node)
    return len(nodes)


def tied_transpose(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The node that transposes the embedding for the projection; None if the two are not tied."""
    return next(
        (n for n in model.graph.node if n.op_type == "Transpose" and n.output[0].endswith("_transposed_once")), None
    )


def nodes_of_layers(model: onnx.ModelProto, layers: Sequence[int]) -> list[str]:
    """Names of the matrix products in some layers, of every branch."""
    found = []
    for graph in (model.graph, *branches(model)):
        for node in graph.node:
            if node.op_type != "MatMul":
                continue
            # Optimum names nodes after their module, we after their weight
            layer = LAYER.search(node.name) or LAYER.search(node.input[1])
            if layer and int(layer[1]) in layers:
                found.append(node.name)
    return found


def rename_in_branches(model: onnx.ModelProto) -> None:
    """Give every tensor computed in a branch a unique name: onnxruntime's fp16 converter treats equal names as one tensor."""
    for number, branch in enumerate(branches(model)):
        new = {name: f"{name}_of_branch_{number}" for node in branch.node for name in node.output}
        del branch.value_info[:]
        for output in branch.output:
            output.name = new.get(output.name, output.name)
        for node in branch.node:
            node.name = f"{node.name}_of_branch_{number}"
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = new.get(name, name)
