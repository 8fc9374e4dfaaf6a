"""A node that says what the workflow around it does otherwise than the trainer (`comfy-check`, in the graph)."""

from __future__ import annotations

from comfy_api.latest import io

from lora_drift.harness.native import check, graphs
from lora_drift.pipelines import MODELS


class CheckWorkflow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftCheck",
            display_name="Check Workflow (like the trainer)",
            category="lora-drift/native",
            description="Names what this workflow does otherwise than ostris/ai-toolkit samples, and what mends it.",
            inputs=[io.Combo.Input("like", options=list(graphs.RECIPES), tooltip="Which model the workflow is of.")],
            outputs=[io.String.Output("findings", tooltip="For Preview as Text.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, like: str) -> io.NodeOutput:
        graph = cls.hidden.prompt
        found = check.findings(graph, MODELS[like])
        return io.NodeOutput(check.told(graph, found) or f"nothing that the trainer does otherwise for {like}")

    @classmethod
    def fingerprint_inputs(cls, **_inputs: str) -> float:
        """Any node may have changed, so it is never what it was."""
        return float("nan")
