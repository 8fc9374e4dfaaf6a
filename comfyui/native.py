"""Nodes for graphs of ComfyUI's own: what the trainer does and no core node can (docs/comfyui.md).

The arithmetic is `lora_drift.harness.native`'s; here it meets ComfyUI's models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy import model_management
from comfy.samplers import Sampler
from comfy_api.latest import io

from lora_drift.harness.native import graphs, lora, resize, sampling, schedule
from lora_drift.pipelines import MODELS, ModelSpec
from lora_drift.pipelines.families.chroma import Chroma
from lora_drift.pipelines.families.wan import Wan
from lora_drift.pipelines.spec import NOISE_STREAMS, NoiseStream

CATEGORY = "lora-drift/native"


def _model(ids: Any, tooltip: str) -> Any:
    return io.Combo.Input("like", options=list(ids), tooltip=tooltip)


class Sampling(Sampler):
    """ComfyUI's guider predicts, the trainer's scheduler steps."""

    def __init__(self, spec: ModelSpec, scheduler: Callable[[], Any]) -> None:
        self.spec, self.scheduler = spec, scheduler

    def sample(
        self,
        model_wrap: Any,
        sigmas: Any,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Any,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> Any:
        inner = model_wrap.inner_model.model_sampling
        denoised = noise

        def predict(latents: Any, timestep: float) -> Any:
            """Models of velocities are asked at the timestep as the scheduler rounded it."""
            nonlocal denoised
            model_management.throw_exception_if_processing_interrupted()
            if self.spec.family == "sd":
                sigma = inner.sigmas[int(timestep)].to(latents)
                scaled = latents * (1 + sigma**2) ** 0.5
            else:
                sigma = latents.new_tensor(timestep / 1000)
                scaled = latents
            denoised = model_wrap(scaled, sigma.expand(len(latents)), **extra_args)
            return (scaled - denoised) / sigma

        def on_step(done: int, latents: Any) -> None:
            if callback is not None:
                callback(done - 1, denoised, latents, len(sigmas) - 1)

        return sampling.sample(self.scheduler(), noise, predict, extra_args["seed"], on_step)


class TrainerSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftSampler",
            display_name="Sampler (like the trainer)",
            category=CATEGORY,
            description="The trainer's scheduler, for SamplerCustomAdvanced with empty latents.",
            inputs=[
                _model(graphs.SAMPLED, "Whose scheduler."),
                io.Int.Input("steps", default=30, min=1, max=1000),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8, tooltip="Of the picture: some shift."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8),
            ],
            outputs=[io.Sampler.Output("sampler"), io.Sigmas.Output("sigmas")],
        )

    @classmethod
    def execute(cls, like: str, steps: int, width: int, height: int) -> io.NodeOutput:
        import torch

        spec = MODELS[like]

        def scheduler() -> Any:
            return schedule.scheduler(spec, steps, width, height)

        # The sampler goes by its scheduler; what ComfyUI reads from the sigmas is how many there are, and the first.
        return io.NodeOutput(Sampling(spec, scheduler), torch.linspace(1, 0, len(scheduler().timesteps) + 1))


@dataclass
class Drawn:
    """What ComfyUI asks for noise."""

    seed: int
    dtype: str
    stream: NoiseStream

    def generate_noise(self, latent: dict[str, Any]) -> Any:
        import torch

        from lora_drift.pipelines import noise

        shape = tuple(latent["samples"].shape)
        return noise.normal(shape, noise.seeded(self.seed, self.stream), getattr(torch, self.dtype)).float()


class Noise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftNoise",
            display_name="Noise (like the trainer)",
            category=CATEGORY,
            description="The trainer on a GPU draws in bfloat16, which gives other numbers of a seed than float32.",
            inputs=[
                io.Int.Input("noise_seed", default=42, min=0, max=2**64 - 1, control_after_generate=True),
                io.Combo.Input("dtype", options=["bfloat16", "float16", "float32"], default="bfloat16"),
                io.Combo.Input(
                    "stream",
                    options=list(NOISE_STREAMS),
                    default=NOISE_STREAMS[0],
                    tooltip="Of the torch that the trainer had: up to 2.11, or since.",
                ),
            ],
            outputs=[io.Noise.Output("noise")],
        )

    @classmethod
    def execute(cls, noise_seed: int, dtype: str, stream: NoiseStream) -> io.NodeOutput:
        return io.NodeOutput(Drawn(noise_seed, dtype, stream))


class Guidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftGuidance",
            display_name="Guidance (like the trainer)",
            category=CATEGORY,
            description="Guides as the trainer's pipelines do, for CFGGuider.",
            inputs=[
                io.Model.Input("model"),
                _model(graphs.GUIDED, "Whose guidance."),
                io.Float.Input(
                    "rescale", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="guidance_rescale of SDXL."
                ),
            ],
            outputs=[io.Model.Output("model")],
        )

    @classmethod
    def execute(cls, model: Any, like: str, rescale: float) -> io.NodeOutput:
        family, guiding = MODELS[like].family, model.clone()

        def guide(args: dict[str, Any]) -> Any:
            return sampling.guided(family, args["cond"], args["uncond"], args["cond_scale"], rescale)

        guiding.set_model_sampler_cfg_function(guide)
        return io.NodeOutput(guiding)


class Text(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftText",
            display_name="Text (like the trainer)",
            category=CATEGORY,
            description="Padding is read as in the trainer: by Chroma's T5, by FLUX.2 itself. Parentheses are text.",
            inputs=[
                io.Clip.Input("clip"),
                _model(graphs.READ, "Whose text."),
                io.String.Input("text", default="", multiline=True),
            ],
            outputs=[io.Conditioning.Output("conditioning")],
        )

    @classmethod
    def execute(cls, clip: Any, like: str, text: str) -> io.NodeOutput:
        spec, tokens = MODELS[like], clip.tokenize(graphs.escaped(text) if like == "chroma" else text)
        assert spec.max_sequence_length is not None
        if isinstance(spec, Chroma):
            return io.NodeOutput(_read_with_padding(clip, tokens, spec.max_sequence_length, spec.padding_read))
        return io.NodeOutput(_padded(clip, tokens, spec.max_sequence_length))


def _read_with_padding(clip: Any, tokens: dict[str, Any], length: int, read: int) -> Any:
    """T5 reads its padding, and the model the words and a little of it."""
    (words,) = tokens["t5xxl"]
    words = words if len(words) <= length else [*words[: length - 1], words[-1]]
    padding = [(0, 1.0)] * (length - len(words))
    conditioning = clip.encode_from_tokens_scheduled({**tokens, "t5xxl": [[*words, *padding]]})
    return [[states[:, : len(words) + read], more] for states, more in conditioning]


MISTRAL, PADDING = "mistral3_24b", 11


def _padded(clip: Any, tokens: dict[str, Any], length: int) -> Any:
    """The model reads what Mistral makes of padding on the left, which looks at nothing: its attention gives zeros."""
    import torch

    (words,) = tokens[MISTRAL]
    (states, more), *_ = clip.encode_from_tokens_scheduled({MISTRAL: [words[:length]]})
    layers = getattr(clip.cond_stage_model, MISTRAL).transformer.model.layers
    hooks = [layer.self_attn.o_proj.register_forward_hook(lambda _m, _i, made: made * 0) for layer in layers]
    try:
        (padding, _), *_ = clip.encode_from_tokens_scheduled({MISTRAL: [[(PADDING, 1.0)]]})
    finally:
        for hook in hooks:
            hook.remove()
    padding = padding.expand(-1, length - states.shape[1], -1)
    return [[torch.cat([padding, states], dim=1), {key: more[key] for key in more if key != "attention_mask"}]]


class Lora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftPatch",
            display_name="LoRA in all formats (like the trainer)",
            category=CATEGORY,
            description="Loads what ComfyUI's own node leaves out in silence (a DoRA's magnitudes, all of a Lumina "
            "LoRA), and refuses a file that does not fit the whole model.",
            inputs=[
                io.Model.Input("model"),
                _model(graphs.PATCHED, "Which model it is."),
                io.Combo.Input("lora_name", options=folder_paths.get_filename_list("loras")),
                io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.05),
            ],
            outputs=[
                io.Model.Output("model"),
                io.String.Output("coverage", tooltip="JSON: how much of it was applied."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, like: str, lora_name: str, strength: float) -> io.NodeOutput:
        from comfy.lora import model_lora_keys_unet

        patched, names = model.clone(), model_lora_keys_unet(model.model, {})
        path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
        # Not its state_dict: there, a LoRA of the graph before may still be merged.
        weights = {name: parts[0][0] for name, parts in model.get_key_patches("diffusion_model.").items()}
        found, coverage = lora.patches(MODELS[like], path, names, weights, strength)
        patched.add_patches({place: ("diff", (change,)) for place, change in found.items()})
        return io.NodeOutput(patched, json.dumps(coverage.as_dict()))


class Experts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftExperts",
            display_name="Two experts (like the trainer)",
            category=CATEGORY,
            description="Both experts as one model, so that one sampler's run sees them.",
            inputs=[
                io.Model.Input("high"),
                io.Model.Input("low"),
                _model(graphs.EXPERTS, "At whose timestep the second takes over."),
            ],
            outputs=[io.Model.Output("model")],
        )

    @classmethod
    def execute(cls, high: Any, low: Any, like: str) -> io.NodeOutput:
        spec, both, second = MODELS[like], high.clone(), low.clone()
        assert isinstance(spec, Wan) and spec.boundary_ratio is not None
        boundary = spec.boundary_ratio
        both.set_additional_models("lora-drift low", [second])

        def apply(model: Callable[..., Any], args: dict[str, Any]) -> Any:
            early = float(args["timestep"].max()) >= boundary
            return (model if early else second.model.apply_model)(args["input"], args["timestep"], **args["c"])

        both.set_model_unet_function_wrapper(apply)
        return io.NodeOutput(both)


class Blank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftBlank",
            display_name="No control image (like the trainer)",
            category=CATEGORY,
            description="Leaves the further channels of Flex.2 blank: nothing to control, everything to be painted.",
            inputs=[io.Model.Input("model"), _model(graphs.BLANK, "Whose channels.")],
            outputs=[io.Model.Output("model")],
        )

    @classmethod
    def execute(cls, model: Any, like: str) -> io.NodeOutput:
        import torch

        blank = model.clone()

        def apply(model: Callable[..., Any], args: dict[str, Any]) -> Any:
            latents = args["input"]
            mask = torch.ones_like(latents[:, :1])
            channels = torch.cat([torch.zeros_like(latents), mask, torch.zeros_like(latents)], dim=1)
            return model(latents, args["timestep"], **{**args["c"], "c_concat": channels})

        blank.set_model_unet_function_wrapper(apply)
        return io.NodeOutput(blank)


class Resize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftResize",
            display_name="Resize (like the trainer)",
            category=CATEGORY,
            description="A control image in the size of the picture: stretched by Pillow, as the trainer has it.",
            inputs=[
                io.Image.Input("image"),
                _model(graphs.RESIZED, "Whose filter."),
                io.Int.Input("width", default=1024, min=16, max=16384, step=8),
                io.Int.Input("height", default=1024, min=16, max=16384, step=8),
            ],
            outputs=[
                io.Image.Output("image"),
                io.Image.Output("seen", tooltip="As CLIP Vision sees it; its crop is none. Of Wan 2.1."),
            ],
        )

    @classmethod
    def execute(cls, image: Any, like: str, width: int, height: int) -> io.NodeOutput:
        return io.NodeOutput(
            *(_tensor(picture) for picture in resize.resized(MODELS[like], _picture(image), width, height))
        )


class FirstFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoraDriftFirstFrame",
            display_name="First frame (like the trainer)",
            category=CATEGORY,
            description="For Wan 2.2 I2V: its latents are a sample of the VAE's posterior, drawn after the noise.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae"),
                io.Image.Input("start_image", tooltip="In the video's size: of a Resize node."),
                io.Int.Input("noise_seed", default=42, min=0, max=2**64 - 1, tooltip="That of the noise."),
                io.Int.Input("length", default=41, min=1, max=10_000, step=4),
            ],
            outputs=[
                io.Conditioning.Output("positive"),
                io.Conditioning.Output("negative"),
                io.Latent.Output("latent"),
            ],
        )

    @classmethod
    def execute(
        cls, positive: Any, negative: Any, vae: Any, start_image: Any, noise_seed: int, length: int
    ) -> io.NodeOutput:
        import torch

        frames = start_image.new_full((length, *start_image.shape[1:3], 3), 0.5)
        frames[:1] = start_image[:1, ..., :3]
        posterior = []
        # ComfyUI's encoder keeps the posterior's mean only.
        hook = vae.first_stage_model.conv1.register_forward_hook(lambda _module, _inputs, made: posterior.append(made))
        try:
            mean = vae.encode(frames)
        finally:
            hook.remove()
        spread = posterior[-1].chunk(2, dim=1)[1].to(mean)
        encoded = sampling.posterior_sample(mean, spread, noise_seed)
        mask = torch.ones_like(encoded[:, :1])
        mask[:, :, 0] = 0
        shown = {"concat_latent_image": encoded, "concat_mask": mask}
        both = [[[text, {**more, **shown}] for text, more in conditioning] for conditioning in (positive, negative)]
        return io.NodeOutput(*both, {"samples": torch.zeros_like(encoded)})


def _picture(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray((image[0, ..., :3].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))


def _tensor(picture: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


NODES: list[type[io.ComfyNode]] = [TrainerSampler, Noise, Guidance, Text, Lora, Experts, Blank, Resize, FirstFrame]
