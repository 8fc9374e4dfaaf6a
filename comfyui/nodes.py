"""The nodes. Which widgets a model has, and their defaults, follow from its row in `lora_drift.pipelines.MODELS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import ComfyExtension, io

from lora_drift.harness.native.pack_graphs import AS_TRAINER
from lora_drift.pipelines import MODELS, ModelSpec, RequestError
from lora_drift.pipelines.quantize import Quantization

from . import check, jobs, native, render

LORA = io.Custom("LORA_DRIFT_LORA")
LOADING = io.Custom("LORA_DRIFT_MODEL")
CATEGORY = "lora-drift"
BY_PATH = "(by path)"


class Model(io.ComfyNode):
    """How the base model is loaded. A Sample node without one loads it as the trainer does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftModel",
            display_name="Model (like the trainer)",
            category=CATEGORY,
            description="Says how a Sample node loads its base model: as which trainer version, and quantised or not.",
            inputs=[
                io.String.Input(
                    "toolkit",
                    display_name="trainer version",
                    default="",
                    placeholder="that of the LoRA",
                    tooltip="Version of ai-toolkit whose samples to reproduce. Empty: the one that made the LoRA.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[AS_TRAINER, "float32", "bfloat16"],
                    default=AS_TRAINER,
                    tooltip="The trainer renders in bfloat16 on a GPU, and in float32 on a CPU.",
                ),
                io.Boolean.Input("quantize", default=False, tooltip="As in the job: the denoiser is quantised."),
                io.String.Input(
                    "qtype", default="qfloat8", tooltip="As in the job: qfloat8, uint4, uint3|ADAPTER, ..."
                ),
                io.Boolean.Input("quantize_te", default=False, tooltip="As in the job: so is the text encoder."),
                io.String.Input("qtype_te", default="qfloat8", tooltip="As in the job, for models that have two."),
                io.Boolean.Input("offload", default=False, tooltip="Keep on the GPU only the part that computes."),
                io.String.Input(
                    "base",
                    default="",
                    placeholder="the trainer's",
                    tooltip="Hub id, folder or file of another base model in the same layout.",
                ),
            ],
            outputs=[LOADING.Output("loading")],
        )

    @classmethod
    def execute(
        cls,
        toolkit: str,
        dtype: str,
        quantize: bool,
        qtype: str,
        quantize_te: bool,
        qtype_te: str,
        offload: bool,
        base: str,
    ) -> io.NodeOutput:
        quantized = quantize or quantize_te
        quantization = Quantization(quantize, quantize_te, qtype, qtype_te) if quantized else None
        chosen = None if dtype == AS_TRAINER else dtype
        return io.NodeOutput(
            render.Loading(toolkit.strip() or None, base.strip() or None, chosen, quantization, offload)
        )


class Lora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftLora",
            display_name="LoRA (like the trainer)",
            category=CATEGORY,
            description="A LoRA, DoRA or LoKr file. A file that does not fit the whole model is refused.",
            inputs=[
                io.Combo.Input("file", options=[BY_PATH, *folder_paths.get_filename_list("loras")], default=BY_PATH),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    tooltip="The trainer's network_multiplier; --m in the prompt wins.",
                ),
                io.Combo.Input(
                    "expert",
                    options=["all", "high", "low"],
                    default="all",
                    tooltip="Of a model with two experts, whose file this is.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[AS_TRAINER, "merged", "live"],
                    default=AS_TRAINER,
                    tooltip="Merged into the weights, or added to each layer's output.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    optional=True,
                    tooltip=f"With file {BY_PATH}: where it lies. It stands in the workflow, and so in saved pictures.",
                ),
                LORA.Input("lora", optional=True, tooltip="The other expert's LoRA."),
            ],
            outputs=[LORA.Output("lora")],
        )

    @classmethod
    def execute(
        cls, file: str, strength: float, expert: str, mode: str, path: str = "", lora: tuple[Any, ...] = ()
    ) -> io.NodeOutput:
        which, how = ("" if expert == "all" else expert), (None if mode == AS_TRAINER else mode)
        return io.NodeOutput(render.chained(lora, render.LoraFile(_lora_path(file, path), which, strength, how)))

    @classmethod
    def fingerprint_inputs(cls, file: str, path: str = "", **_others: Any) -> str:
        """A file that was written anew under its name is another."""
        try:
            state = Path(_lora_path(file, path)).stat()
        except (OSError, RequestError):  # said when it is read
            return "missing"
        return f"{state.st_mtime_ns} {state.st_size}"


def _lora_path(file: str, path: str) -> str:
    if file != BY_PATH:
        return str(folder_paths.get_full_path_or_raise("loras", file))
    if not path.strip():
        raise RequestError(f"file {BY_PATH}: choose a file from models/loras, or say in path where it lies")
    return str(Path(path.strip()).expanduser())


class Sample(io.ComfyNode):
    def __init__(self) -> None:
        super().__init__()
        self.held = render.held()  # ComfyUI keeps this object while a graph needs it: so long the weights stay

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftSample",
            display_name="Sample (like the trainer)",
            category=CATEGORY,
            description="Renders a prompt as ostris/ai-toolkit sampled it while training.",
            search_aliases=["ai-toolkit", "lora-drift"],
            inputs=[
                io.DynamicCombo.Input(
                    "model", options=[io.DynamicCombo.Option(spec.id, widgets(spec)) for spec in MODELS.values()]
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="May hold [trigger], and the trainer's flags: --cfg 4"
                ),
                io.Int.Input("seed", default=42, min=0, max=2**64 - 1, control_after_generate=True),
                io.String.Input("trigger_word", default="", optional=True, tooltip="Replaces [trigger] in the prompt."),
                LORA.Input("lora", optional=True),
                LOADING.Input(
                    "loading", optional=True, tooltip="From a Model node; without: as the trainer's defaults."
                ),
            ],
            outputs=render.outputs(),
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        seed: int,
        model: dict[str, Any] | None = None,
        trigger_word: str = "",
        lora: tuple[render.LoraFile, ...] = (),
        loading: render.Loading | None = None,
    ) -> io.NodeOutput:
        if model is None:  # ComfyUI leaves out what it does not find among the options
            raise RequestError(f"model: unknown here; choose one of {', '.join(MODELS)}")
        chosen = {name: value for name, value in model.items() if value is not None}
        images = chosen.pop("control", {})
        return io.NodeOutput(
            *render.sample(
                chosen.pop("model"),
                loading or render.Loading(),
                lora,
                images,
                prompt=prompt,
                seed=seed,
                trigger_word=trigger_word or None,
                **chosen,
            )
        )


def widgets(spec: ModelSpec) -> list[Any]:
    """A model's own inputs. Those with a default may be left out of a graph that a program writes. New ones go to the
    end: saved graphs know widgets by their place."""
    fewest, most = spec.controls
    found: list[Any] = [
        io.Int.Input(
            name, default=getattr(spec, name), min=spec.smallest_side, max=16384, step=spec.size_divisor, optional=True
        )
        for name in ("width", "height")
    ]
    found.append(io.Int.Input("steps", default=spec.steps, min=spec.fewest_steps, max=spec.most_steps, optional=True))
    found.append(
        io.Float.Input(
            "guidance_scale", default=spec.guidance_scale, min=-100.0, max=100.0, step=0.1, round=0.001, optional=True
        )
    )
    if spec.guidance != "embedded":
        found.append(io.String.Input("negative", default="", multiline=True, optional=True))
    if spec.kind == "video":
        found.append(
            io.Int.Input("num_frames", default=spec.num_frames, min=1, max=10_000, step=spec.frame_step, optional=True)
        )
        found.append(io.Int.Input("fps", default=spec.fps, min=1, max=240, optional=True))
    if most:
        # Of at least 0 the browser would draw no socket, and so nothing to link; of an optional one it draws the first.
        slot = io.Image.Input("image", tooltip="A control image.", optional=not fewest)
        found.append(
            io.Autogrow.Input(
                "control", template=io.Autogrow.TemplatePrefix(slot, "control", min=max(fewest, 1), max=most)
            )
        )
    return found


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Model, Lora, Sample, jobs.Job, jobs.Verify, *native.NODES, check.CheckWorkflow]


async def comfy_entrypoint() -> ComfyExtension:
    return Extension()
