"""ERNIE-Image. Follows extensions_built_in/diffusion_models/ernie_image of the trainer."""

from __future__ import annotations

from typing import Any

from lora_drift.pipelines import loading
from lora_drift.pipelines.family import nothing_to_refuse, same_name
from lora_drift.pipelines.output import Media
from lora_drift.pipelines.settings import Settings
from lora_drift.pipelines.spec import LAYER_BY_LAYER, ModelSpec, Quantizes, Scheduler

ROWS = (
    ModelSpec(
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
        earlier=(LAYER_BY_LAYER,),
    ),
)


def load(spec: ModelSpec, base: str, dtype: Any) -> Any:
    return loading.pipeline(spec, base, dtype, pe=None, pe_tokenizer=None)


check = nothing_to_refuse


def render(pipe: Any, spec: ModelSpec, settings: Settings, **call: Any) -> Media:
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
        **call,
    )
    return Media(list(output.images))


denoiser_shapes = loading.denoiser_shapes
lora_targets = same_name
