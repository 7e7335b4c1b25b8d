"""Whether an ONNX file is a graph and nothing else, before anything computes with it: whoever wrote it may be anybody.

Reads the protocol buffer; no runtime sees it. What a graph can still do is take time and memory, as any model can.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LARGEST_BYTES = 500 * 2**20
DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}  # whose operators are in ONNX's standard
# without an end of their own, or with another result each time
NOT_TAKEN = {
    "Loop",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}


def fault(content: bytes, most_bytes: int = LARGEST_BYTES) -> str:
    """What is wrong with it, as the end of a sentence; "" where nothing is."""
    if len(content) > most_bytes:
        return f"has {len(content):,} bytes, more than the {most_bytes:,} that are read"
    try:
        import onnx
    except ImportError:
        return "cannot be checked, as onnx is not installed: pip install onnx"
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception:  # protobuf's own, which is no dependency of ours
        return "is no ONNX file"
    if not model.graph.node or not model.graph.output:
        return "has no graph"
    if model.functions or model.training_info:
        return "has functions or training steps of its own, and only a graph is taken"
    domains = {one.domain for one in model.opset_import} | {node.domain for node in _nodes(model.graph)}
    if other := sorted(domains - DOMAINS):
        return f"has operators of {', '.join(other)[:200]!r}, which are not ONNX's own"
    if odd := sorted({node.op_type for node in _nodes(model.graph)} & NOT_TAKEN):
        return f"has the operator {odd[0]}, which no model needs that scores one record like the other"
    if any(tensor.external_data or tensor.data_location for tensor in _tensors(model.graph)):
        return "has numbers in another file, and a model folder's graph has all of its own"
    return ""


def _graphs(graph: Any) -> Iterator[Any]:
    """It, and all within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer or inner.sparse_initializer:
                    yield from _graphs(inner)


def _nodes(graph: Any) -> Iterator[Any]:
    for one in _graphs(graph):
        yield from one.node


def _tensors(graph: Any) -> Iterator[Any]:
    for one in _graphs(graph):
        yield from one.initializer
        sparse = [*one.sparse_initializer]
        for attribute in (attribute for node in one.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for each in sparse:
            yield from (each.values, each.indices)
