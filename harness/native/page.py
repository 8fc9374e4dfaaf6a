"""The workflow as ComfyUI's page keeps it (Save), as the graph that its API takes: nodes within nodes unfolded, values
by name, and nodes that are muted or bypassed left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_drift.harness.native.pack_graphs import Graph

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
INTO, OUT_OF = -10, -20
"""What a subgraph calls the node that stands for its inputs, and for its outputs."""
AFTER_SEED = ("fixed", "randomize", "increment", "decrement")
WIDGETS = {
    "KSampler": ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "Flux2Scheduler": ("steps", "width", "height"),
    "ManualSigmas": ("sigmas",),
    "CFGGuider": ("cfg",),
    "FluxGuidance": ("guidance",),
    "CLIPTextEncode": ("text",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "T5TokenizerOptions": ("min_padding", "min_length"),
    "ModelSamplingFlux": ("max_shift", "base_shift", "width", "height"),
    "ModelSamplingAuraFlow": ("shift",),
    "ModelSamplingSD3": ("shift",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "EmptyFlux2LatentImage": ("width", "height", "batch_size"),
}
"""Of workflows that give values without names: those of the nodes that `check.py` reads."""


class _Level:
    """The page, or one subgraph on it."""

    def __init__(self, content: Mapping[str, Any], kinds: Mapping[str, Any], name: str = "", outer: Any = None) -> None:
        self.kinds, self.name, self.outer = kinds, name, outer
        self.nodes = {node["id"]: node for node in content["nodes"]}
        self.links = dict(map(_link, content["links"]))
        self.inside = {id: self._within(node) for id, node in self.nodes.items() if node["type"] in kinds}

    def _within(self, node: Mapping[str, Any]) -> _Level:
        return _Level(self.kinds[node["type"]], self.kinds, f"{self.name}{node['id']}:", (self, node))

    def named(self, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Values by name."""
        values = node.get("widgets_values") or []
        if isinstance(values, Mapping):
            yield from values.items()
            return
        names = [i["name"] for i in node.get("inputs", ()) if "widget" in i] or WIDGETS.get(node["type"], ())
        left = list(values)
        for name in names:
            if not left:
                return
            yield name, left.pop(0)
            if name in ("seed", "noise_seed") and left and left[0] in AFTER_SEED:
                left.pop(0)

    def value(self, link: int | None) -> Any:
        """What an input gets through a link: [node, output], a value, or None where nothing comes."""
        if link is None or link not in self.links:
            return None
        id, slot = self.links[link]
        if id == INTO:
            level, node = self.outer
            given = node["inputs"][slot] if slot < len(node.get("inputs", ())) else {}
            found = level.value(given.get("link"))
            return dict(level.named(node)).get(given.get("name")) if found is None else found
        node = self.nodes[id]
        if id in self.inside:
            inner = self.inside[id]
            return next((inner.value(n) for n, place in inner.targets() if place == (OUT_OF, slot)), None)
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            return self.value(node["inputs"][0].get("link"))
        if node.get("mode") == MUTED:
            return None
        if node.get("mode") == BYPASSED:
            made = node["outputs"][slot]["type"]
            return next((self.value(i.get("link")) for i in node["inputs"] if i["type"] == made), None)
        return [f"{self.name}{id}", slot]

    def targets(self) -> Iterator[tuple[int, tuple[int, int]]]:
        for link in self.kinds[self.outer[1]["type"]]["links"]:
            number, _ = _link(link)
            place = (link["target_id"], link["target_slot"]) if isinstance(link, Mapping) else (link[3], link[4])
            yield number, place

    def graph(self) -> Graph:
        found: Graph = {}
        for id, node in self.nodes.items():
            if id in self.inside:
                if node.get("mode") not in (MUTED, BYPASSED):
                    found |= self.inside[id].graph()
                continue
            if node["type"] in (*NOTES, "PrimitiveNode", "Reroute") or node.get("mode") in (MUTED, BYPASSED):
                continue
            inputs = dict(self.named(node))
            linked = {i["name"]: self.value(i["link"]) for i in node.get("inputs", ()) if i.get("link") is not None}
            inputs |= {name: value for name, value in linked.items() if value is not None}
            found[f"{self.name}{id}"] = {"class_type": node["type"], "inputs": inputs}
        return found


def _link(link: Any) -> tuple[int, tuple[int, int]]:
    """Its number, and the node and output that it begins at."""
    if isinstance(link, Mapping):
        return link["id"], (link["origin_id"], link["origin_slot"])
    return link[0], (link[1], link[2])


def graph_of(workflow: Mapping[str, Any]) -> Graph:
    """The graph of what the page keeps.

    Raises:
        KeyError, TypeError, IndexError: it is no such thing.
    """
    kinds = {part["id"]: part for part in workflow.get("definitions", {}).get("subgraphs", ())}
    return _Level(workflow, kinds).graph()
