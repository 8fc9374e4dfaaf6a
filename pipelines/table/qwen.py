"""Qwen-Image and its editing relatives."""

from typing import Any

from lora_drift.pipelines.spec import ModelSpec, Quantizes, Scheduler

QWEN_SCHEDULER = Scheduler(
    "FlowMatchEulerDiscreteScheduler",
    {
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    },
)

SHARED: dict[str, Any] = {
    "family": "qwen",
    "denoisers": {"": "transformer"},
    "quantizes": Quantizes(encoder_qtype="qtype_te"),
    "lora_prefixes": ("diffusion_model.", "transformer."),
    "scheduler": QWEN_SCHEDULER,
    "size_divisor": 32,
    "width": 1024,
    "height": 1024,
    "steps": 25,
    "guidance_scale": 4.0,
    "guidance": "cfg",
    "max_sequence_length": 512,
    "slow_tokenizers": ("tokenizer",),
    "fewest_steps": 2,  # the terminal shift of a single step is 0 / 0
}
FOLDER = "extensions_built_in/diffusion_models/qwen_image"

QUIRKS = (
    "The size is floored to 32, although the model could do 16.",
    "An empty negative prompt is encoded and used like any other.",
)
EDIT_QUIRKS = (
    *QUIRKS,
    "The text encoder sees control images with width and height swapped: their ratio is taken the wrong way round.",
    "The text encoder sees nearly black control images: their values are divided by 255 twice.",
)
PLUS_QUIRKS = (
    *EDIT_QUIRKS,
    "The negative prompt sees control images resized twice: the list that the positive prompt's encoding has resized "
    "in place is resized again, the sides swapped back.",
    "The guided prediction keeps its own length unless `do_cfg_norm` is set; stock Diffusers always rescales it.",
    "A picture given as `ctrl_img` is seen twice by the text encoder (ctrl_img_1 defaults to it), once by the model.",
)


def _image(id: str, title: str, base: str) -> ModelSpec:
    return ModelSpec(
        id=id,
        title=title,
        kind="image",
        pipeline="QwenImagePipeline",
        base=base,
        quirks=QUIRKS,
        source=(f"{FOLDER}/qwen_image.py",),
        **SHARED,
    )


def _plus(id: str, title: str, base: str) -> ModelSpec:
    return ModelSpec(
        id=id,
        title=title,
        kind="edit",
        pipeline="QwenImageEditPlusPipeline",
        base=base,
        controls=(1, 3),
        quirks=PLUS_QUIRKS,
        source=tuple(f"{FOLDER}/{name}.py" for name in ("qwen_image", "qwen_image_edit_plus", "qwen_image_pipelines")),
        **SHARED,
    )


ROWS = (
    _image("qwen_image", "Qwen-Image", "Qwen/Qwen-Image"),
    _image("qwen_image_2512", "Qwen-Image-2512", "Qwen/Qwen-Image-2512"),
    ModelSpec(
        id="qwen_image_edit",
        title="Qwen-Image-Edit",
        kind="edit",
        pipeline="QwenImageEditPipeline",
        base="Qwen/Qwen-Image-Edit",
        controls=(1, 1),
        quirks=(
            *EDIT_QUIRKS,
            "The VAE sees the control image squeezed to the picture's size and stretched back to about a megapixel; "
            "the text encoder sees the original.",
        ),
        source=(f"{FOLDER}/qwen_image.py", f"{FOLDER}/qwen_image_edit.py"),
        **SHARED,
    ),
    _plus("qwen_image_edit_plus", "Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit-2509"),
    _plus("qwen_image_edit_plus_2511", "Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2511"),
)
