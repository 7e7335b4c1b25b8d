"""The graph of a pipeline: where its data come from, its steps, its gate and its model; as SVG and as lines of text.

Made from the pipeline alone, or with a run's manifest, which adds what became of each step. Pure: reads no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from runner.errors import counted
from runner.escape import visible
from runner.manifest import RunManifest, StepState
from runner.pipeline.file import APPROVED, VERDICT, is_output
from runner.records import Pipeline
from runner.report.files import environment, number

Kind = Literal["data", "step", "gate", "model"]
MARKS = {
    "succeeded": "✓", "cached": "✓", "failed": "✗", "interrupted": "‖", "skipped": "–", "running": "▸",
    "pass": "✓", "fail": "✗", "inconclusive": "?", "error": "!",
}  # fmt: skip
LONGEST = 24  # characters of a label in the drawing; the whole of it is its title
LETTER, LINE, PAD, GAP_X, GAP_Y, HEIGHT = 7.4, 17.0, 12.0, 46.0, 18.0, 46.0
GATE = "gate"


@dataclass(frozen=True)
class Node:
    """One box. `status` is a step's or the gate's, "" where there is none yet; `detail` the box's second line."""

    id: str
    kind: Kind
    label: str
    detail: str = ""
    status: str = ""
    needs: tuple[str, ...] = ()  # ids of nodes
    takes: tuple[str, ...] = ()  # what exactly, in words


@dataclass(frozen=True)
class Box:
    """A node with its place in the drawing, in pixels from the top left."""

    node: Node
    x: float
    y: float
    width: float
    height: float = HEIGHT
    href: str = ""


@dataclass(frozen=True)
class Drawing:
    boxes: list[Box]
    edges: list[str]  # SVG paths
    width: float
    height: float
    words: str

    @property
    def has_links(self) -> bool:
        return any(box.href for box in self.boxes)


def graph(pipeline: Pipeline, manifest: RunManifest | None = None) -> list[Node]:
    """The nodes, each after those it needs; steps as the pipeline has them, with a run's states where it is given."""
    states = {state.name: state for state in manifest.steps} if manifest is not None else {}
    nodes: dict[str, Node] = {}
    for name, spec in pipeline.steps.items():
        needs: dict[str, None] = {}
        takes = []
        for key, source in ((key, item.from_) for key, item in spec.inputs.items()):
            if source == VERDICT:
                need = GATE
            elif source and is_output(source):
                need = f"step:{source.partition('.')[0]}"
            else:
                need = f"data:{source or key}"
                nodes.setdefault(need, _source(need, source, key, name, manifest))
            needs[need] = None
            takes.append(source or f"{key} (not given)")
        for source in (source for source in spec.map.values() if isinstance(source, str)):
            needs[f"step:{source.partition('.')[0]}"] = None
            takes.append(source)
        needs |= {f"step:{other}": None for other in spec.after}
        state = states.get(name)
        status, detail = _state(state) if manifest is not None else ("", spec.notebook.rpartition("/")[2])
        if manifest is None and name in pipeline.skip:
            status, detail = "skipped", "not in this profile"
        nodes[f"step:{name}"] = Node(f"step:{name}", "step", name, detail, status, tuple(needs), tuple(takes))
    if pipeline.gate:
        nodes[GATE] = _gate(pipeline, manifest)
    if pipeline.model is not None:
        nodes["model"] = _model(pipeline, manifest)
    return _in_order(nodes)


def _source(node: str, source: str, key: str, step: str, manifest: RunManifest | None) -> Node:
    fact = manifest.sources.get(f"{step}.{key}") if manifest is not None else None
    if source.startswith(APPROVED):
        version = manifest.champion if manifest is not None else None
        detail = f"version {version.version}" if version is not None else "the champion" if manifest is None else "none"
        return Node(node, "data", f"{source.removeprefix(APPROVED)}, approved", detail)
    name = (source.rstrip("/").rpartition("/")[2] or source) if source else f"{key}, not given"
    detail = f"sha256 {fact.artifact.sha256[:8]}" if fact is not None and fact.artifact is not None else "data"
    return Node(node, "data", name, detail)


def _state(state: StepState | None) -> tuple[str, str]:
    if state is None or state.status is None:
        return "", "not started"
    if state.status == "cached":
        return state.status, "cached"
    seconds = f"{state.result.seconds:.1f} s" if state.result is not None else ""
    return state.status, seconds if state.status == "succeeded" else f"{state.status} {seconds}".strip()


def _gate(pipeline: Pipeline, manifest: RunManifest | None) -> Node:
    steps = dict.fromkeys(f"step:{rule.metric.partition('.')[0]}" for rule in pipeline.gate)
    rules, verdict = counted(len(pipeline.gate), "rule"), manifest.verdict if manifest is not None else None
    words = {"pass": "passed", "fail": "not passed", "error": "in error"}
    detail = words.get(verdict.outcome, verdict.outcome) if verdict is not None else rules
    status = verdict.outcome if verdict is not None else ""
    return Node(GATE, "gate", "gate", detail, status, tuple(steps), (rules,))


def _model(pipeline: Pipeline, manifest: RunManifest | None) -> Node:
    assert pipeline.model is not None
    version = manifest.model_version if manifest is not None else None
    needs = [f"step:{pipeline.model.from_.partition('.')[0]}", *([GATE] if pipeline.gate else [])]
    label = version.label if version is not None else pipeline.model.name
    detail = version.status if version is not None else "model" if manifest is None else "not registered"
    return Node("model", "model", label, detail, "", tuple(needs), (pipeline.model.from_,))


def _in_order(nodes: Mapping[str, Node]) -> list[Node]:
    """Each after what it needs, otherwise as they came. What needs something that is not there, needs nothing."""
    left = {key: replace(node, needs=tuple(n for n in node.needs if n in nodes)) for key, node in nodes.items()}
    ordered: list[Node] = []
    placed: set[str] = set()
    while left:
        key = next((key for key, node in left.items() if placed.issuperset(node.needs)), next(iter(left)))
        ordered.append(left.pop(key))
        placed.add(key)
    return ordered


def text(nodes: Sequence[Node]) -> list[tuple[str, Node]]:
    """Each node with its rails: a line for each, the lanes of what later ones take drawn through it."""
    consumers = {node.id: {other.id for other in nodes if node.id in other.needs} for node in nodes}
    lanes: list[str | None] = []  # whose output runs down here
    lines = []
    for node in nodes:
        incoming = {at for at, lane in enumerate(lanes) if lane in node.needs}
        for at in incoming:
            consumers[str(lanes[at])].discard(node.id)
        ending = {at for at in incoming if not consumers[str(lanes[at])]}
        free = [at for at, lane in enumerate(lanes) if lane is None]
        place = min(ending) if ending else next((at for at in free if at > max(incoming, default=-1)), len(lanes))
        lines.append((_rails(lanes, incoming, ending, place), node))
        for at in ending:
            lanes[at] = None
        lanes += [None] * (place + 1 - len(lanes))
        lanes[place] = node.id if consumers[node.id] else None
        while lanes and lanes[-1] is None:
            lanes.pop()
    return lines


def _rails(lanes: Sequence[str | None], incoming: set[int], ending: set[int], place: int) -> str:
    first, last = min({place, *incoming}), max({place, *incoming})
    drawn = []
    for at in range(max(len(lanes), place + 1)):
        open_lane = at < len(lanes) and lanes[at] is not None
        inside = first <= at <= last
        if at == place:
            mark = "●"
        elif at in ending:
            mark = "╰" if at == first else "╯" if at == last else "┴"
        elif at in incoming:
            mark = "├" if at == first else "┤" if at == last else "┼"
        else:
            mark = "│" if open_lane else "─" if inside else " "
        drawn.append(mark + ("─" if first <= at < last else " "))
    return "".join(drawn).rstrip()


def draw(nodes: Sequence[Node], links: Mapping[str, str] | None = None) -> Drawing:
    """From left to right, each node in the column after the last one that it needs. `links` has addresses by id."""
    column: dict[str, int] = {}
    for node in nodes:
        column[node.id] = 1 + max((column.get(need, -1) for need in node.needs), default=-1)
    for node in reversed(nodes):  # data stand beside what takes them first
        takers = [column[other.id] for other in nodes if node.id in other.needs]
        if node.kind == "data" and takers:
            column[node.id] = max(0, min(takers) - 1)
    columns: list[list[Node]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for node in nodes:
        columns[column[node.id]].append(node)
    rank: dict[str, float] = {}
    for members in columns:  # under what they come from, which leaves few edges that cross
        for at, node in enumerate(members):
            known = [rank[need] for need in node.needs if need in rank]
            rank[node.id] = sum(known) / len(known) if known else float(at)
        members.sort(key=lambda node: (rank[node.id], node.kind == "data"))
        for at, node in enumerate(members):
            rank[node.id] = at - (len(members) - 1) / 2
    tallest = max((len(members) for members in columns), default=0)
    height = tallest * (HEIGHT + GAP_Y) + GAP_Y
    boxes: dict[str, Box] = {}
    x = 1.0
    for members in columns:
        width = max((_width(node) for node in members), default=0.0)
        top = (height - len(members) * (HEIGHT + GAP_Y) + GAP_Y) / 2
        for at, node in enumerate(members):
            href = (links or {}).get(node.id, "")
            boxes[node.id] = Box(node, x, top + at * (HEIGHT + GAP_Y), width, href=href)
        x += width + GAP_X
    between = {
        at: [boxes[node.id] for node in members] for at, members in enumerate(columns)
    }  # what an edge over several columns must not run behind
    edges = [
        _edge(boxes[need], boxes[node.id], [between[at] for at in range(column[need] + 1, column[node.id])])
        for node in nodes
        for need in node.needs
    ]
    return Drawing(list(boxes.values()), edges, max(1.0, x - GAP_X + 1), height, _in_words(nodes))


def _width(node: Node) -> float:
    longest = max(len(shorten(node.label)), len(shorten(node.detail)) + 2)
    return round(2 * PAD + LETTER * max(6, longest), 1)


def _edge(start: Box, end: Box, between: Sequence[Sequence[Box]]) -> str:
    """A curve from box to box; around those of the columns between, where it would run behind one."""
    x1, y1 = start.x + start.width, start.y + HEIGHT / 2
    x2, y2 = end.x - 1, end.y + HEIGHT / 2
    crossed = [box for members in between for box in members]
    low, high = min(y1, y2) - 4, max(y1, y2) + 4
    if not any(box.y < high and box.y + HEIGHT > low for box in crossed):
        bend = max(GAP_X / 2, (x2 - x1) / 2)
        return f"M{x1:.1f} {y1:.1f} C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    above, below = min(box.y for box in crossed) - GAP_Y / 2, max(box.y for box in crossed) + HEIGHT + GAP_Y / 2
    y = above if (y1 + y2) / 2 - above <= below - (y1 + y2) / 2 else below
    first, last = min(box.x for box in crossed), max(box.x + box.width for box in crossed)
    bend = GAP_X / 2
    return (
        f"M{x1:.1f} {y1:.1f} C{x1 + bend:.1f} {y1:.1f} {first - bend:.1f} {y:.1f} {first:.1f} {y:.1f} "
        f"L{last:.1f} {y:.1f} C{last + bend:.1f} {y:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    )


def _in_words(nodes: Iterable[Node]) -> str:
    names = {node.id: node.label for node in nodes}
    parts = [
        f"{node.label}{f' ({node.detail})' if node.detail else ''}"
        + (f" takes {', '.join(names[need] for need in node.needs)}" if node.needs else "")
        for node in nodes
        if node.kind != "data"
    ]
    return visible("; ".join(parts))


def shorten(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def svg(nodes: Sequence[Node], links: Mapping[str, str] | None = None, *, standalone: bool = False) -> str:
    """The drawing as an SVG element, inert; `standalone` with its own style, as a file needs it."""
    values: dict[str, Any] = {"drawing": draw(nodes, links), "marks": MARKS, "shorten": shorten, "number": number}
    return environment().get_template("graph.svg.j2").render(standalone=standalone, **values)
