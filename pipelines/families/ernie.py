"""ERNIE-Image. Follows extensions_built_in/diffusion_models/ernie_image of the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, Earlier, ModelSpec, Quantizes, Scheduler


@dataclass(frozen=True)
class Ernie(ModelSpec):
    levels_cut: bool = False
    """A value of the picture between two levels becomes the lower one, not the nearest."""


ROWS = (
    Ernie(
        id="ernie_image",
        title="ERNIE-Image",
        kind="image",
        family="ernie",
        pipeline="ErnieImagePipeline",
        base="baidu/ERNIE-Image",
        denoisers={"": "transformer"},
        quantizes=Quantizes(encoder_qtype="qtype_te"),
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=Scheduler(
            "diffusers.FlowMatchEulerDiscreteScheduler",
            {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False},
        ),
        size_divisor=32,
        width=1024,
        height=1024,
        steps=30,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=None,
        requires=("diffusers>=0.38", "transformers>=5"),
        quirks=(
            "The shift is 3.0, whatever the repository's own scheduler says.",
            "The size is floored to 32, although the autoencoder takes 16.",
            "The prompt enhancer of the repository is not used; stock Diffusers rewrites the prompt with it.",
        ),
        source=tuple(
            f"extensions_built_in/diffusion_models/ernie_image/{name}.py" for name in ("ernie_image", "transformer")
        ),
        since="0.9.1",
        earlier=(
            Earlier(
                before="0.10.24",
                why="Pixels were cut down to whole levels, not rounded (ErnieImagePipeline before Diffusers #13663): "
                "half of them are 1 of 255 darker.",
                fields={"levels_cut": True},
            ),
            LAYER_BY_LAYER,
        ),
    ),
)


def load(spec: Ernie, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype, pe=None, pe_tokenizer=None)


check = nothing_to_refuse


def render(pipe: Any, spec: Ernie, settings: Settings, **call: Any) -> Media:
    from PIL import Image

    def embeds(prompt: str) -> list[Any]:
        """Of the tokens alone: nothing is padded."""
        return [found[: spec.max_sequence_length] for found in pipe.encode_prompt(prompt, pipe._execution_device)]

    call["prompt_embeds"] = embeds(settings.prompt)
    if spec.guides(settings.guidance_scale):
        call["negative_prompt_embeds"] = embeds(settings.negative_prompt)
    output = pipe(
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        guidance_scale=spec.pipeline_scale(settings.guidance_scale),
        output_type="np" if spec.levels_cut else "pil",
        **call,
    )
    if spec.levels_cut:
        return Media([Image.fromarray((values * 255).astype("uint8")) for values in output.images])
    return Media(list(output.images))


denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
