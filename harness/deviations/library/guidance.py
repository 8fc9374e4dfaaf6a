"""How predictions with and without the prompt become one."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from lora_drift.harness.check.divergence import CONTROL, DENOISER, GUIDANCE, NEGATIVE
from lora_drift.harness.deviations.library.base import (
    Subject,
    answering,
    called_with,
    families,
    hooked,
    patched,
    variation,
)
from lora_drift.pipelines.adapter import underneath


def _embedded(s: Subject) -> bool:
    return s.spec.guidance == "embedded"


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Z-Image counts guidance from 0 and trainer 0.11 passes g - 1; ComfyUI's cfg is the conventional g",
    applies=lambda s: s.guided or _embedded(s),
)
def guidance_one_less(s: Subject) -> Iterator[Subject]:
    """A scale g is taken to mean g - 1."""
    yield s.but(guidance_scale=s.settings.guidance_scale - 1)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Z-Image in Diffusers: pos + g (pos - neg), which is a conventional g + 1; ostris/ai-toolkit issue 589",
    applies=lambda s: s.guided or _embedded(s),
)
def guidance_one_more(s: Subject) -> Iterator[Subject]:
    """A scale g is taken to mean g + 1."""
    yield s.but(guidance_scale=s.settings.guidance_scale + 1)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="ZImagePipeline's own scale, which trainers before 0.10.21 pass on: pos + g (pos - neg), for every g > 0",
    applies=lambda s: (
        s.spec.family == "zimage" and s.spec.own["guidance_offset"] != 0 and s.settings.guidance_scale > 0
    ),
)
def guidance_of_the_pipeline(s: Subject) -> Iterator[Subject]:
    """Nothing is taken off Z-Image's guidance scale."""
    yield s.with_spec(guidance="cfg_above_zero", guidance_offset=0.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Diffusers issue 13377: guidance was silently off because the negative mask was None; turbo workflows use 1",
    applies=lambda s: s.guided and s.spec.guidance != "cfg_always",
)
def guidance_off(s: Subject) -> Iterator[Subject]:
    """There is one pass, with the prompt alone."""
    yield s.but(guidance_scale=0.0 if s.spec.guidance == "cfg_above_zero" else 1.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Diffusers 8600b4c1 (trainer 0.7.19 to 0.7.24): Z-Image guides above 1; since 072d15ee above 0",
    applies=lambda s: s.spec.guidance == "cfg_above_zero" and 0 < s.settings.guidance_scale <= 1,
)
def guidance_only_above_one(s: Subject) -> Iterator[Subject]:
    """Z-Image at guidance 1 makes one pass."""
    yield s.but(guidance_scale=0.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="bghira/SimpleTuner issue 748: real guidance in place of the distilled one",
    applies=lambda s: s.spec.family == "flux" and s.settings.guidance_scale > 1,
)
def true_guidance_for_embedded(s: Subject) -> Iterator[Subject]:
    """Two passes are made and guided, beside the scale that is an input."""
    negative = s.settings.negative_prompt
    yield s.with_call(true_cfg_scale=s.settings.guidance_scale, negative_prompt=negative)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="FLUX workflows without a FluxGuidance node, and trainers that bypass the embedder (Flex.1), send 1",
    applies=lambda s: _embedded(s) and s.settings.guidance_scale != 1,
)
def embedded_guidance_of_one(s: Subject) -> Iterator[Subject]:
    """The guidance input is 1 whatever is asked."""
    yield s.but(guidance_scale=1.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="BFL's and Diffusers' default 3.5 is kept by wrappers that do not pass guidance on",
    applies=lambda s: _embedded(s) and s.settings.guidance_scale != 3.5,
)
def embedded_guidance_of_the_default(s: Subject) -> Iterator[Subject]:
    """The guidance input is 3.5 whatever is asked."""
    yield s.but(guidance_scale=3.5)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Diffusers guidance_rescale (0.7 in its examples); ComfyUI's RescaleCFG",
    applies=lambda s: s.guided and s.spec.id == "sdxl" and s.settings.guidance_rescale == 0,
)
def guidance_rescaled(s: Subject) -> Iterator[Subject]:
    """The guided prediction is brought back to the spread of the plain one."""
    yield s.but(guidance_rescale=0.7)


class _Torch(ModuleType):
    """`torch` for one module, in which all lengths are 1: what divides by lengths then divides by nothing."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def norm(tensor: torch.Tensor, **_options: Any) -> torch.Tensor:
        return torch.ones_like(tensor[..., :1])


@variation(
    "guidance",
    shows=GUIDANCE,
    source="ComfyUI's plain CFG (its CFGNorm node is separate); Diffusers pipeline_qwenimage.py rescales always",
    applies=lambda s: s.guided and s.spec.id in ("qwen_image", "qwen_image_2512", "qwen_image_edit", "lumina2"),
)
def guided_prediction_not_rescaled(s: Subject) -> Iterator[Subject]:
    """The guided prediction keeps its own length."""
    import sys

    with patched(sys.modules[type(s.pipe).__module__], "torch", _Torch()):
        yield s


@variation(
    "guidance",
    shows=GUIDANCE,
    source="stock QwenImageEditPlusPipeline always rescales; trainer qwen_image_pipelines.py: do_cfg_norm off",
    applies=lambda s: s.guided and s.spec.controls[1] > 1 and s.spec.family == "qwen" and not s.settings.do_cfg_norm,
)
def guided_prediction_rescaled(s: Subject) -> Iterator[Subject]:
    """Every guided prediction is brought to the length of the positive one."""
    yield s.but(do_cfg_norm=True)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Z-Image's own pipeline has cfg_normalization; Diffusers and the trainer leave it off",
    applies=lambda s: s.guided and s.spec.family == "zimage",
)
def guided_prediction_clipped(s: Subject) -> Iterator[Subject]:
    """The guided prediction is never longer than the positive one."""
    yield s.with_call(cfg_normalization=True)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="runcomfy ai-toolkit-inference hidream.py: image guidance 4; trainer: 2, the default of its pipeline",
    applies=lambda s: s.guided and s.spec.id == "hidream_e1",
)
def image_guidance_of_another_stack(s: Subject) -> Iterator[Subject]:
    """HiDream-E1's image guidance is 4."""
    yield s.with_spec(image_guidance_scale=4.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="HiDream-E1's clip_cfg_norm is an option of its pipeline (pipeline_hidream_image_editing.py line 806)",
    applies=lambda s: s.guided and s.spec.id == "hidream_e1",
)
def text_guidance_not_clipped(s: Subject) -> Iterator[Subject]:
    """HiDream-E1's text-guided prediction may grow longer than the plain one."""
    yield s.with_spec(text_guidance_clipped=False)


@variation(
    "guidance",
    shows=CONTROL,
    source="OmniGen2's own default: with image guidance above 1 the negative pass has no reference",
    applies=lambda s: s.guided and s.spec.family == "omnigen2" and bool(s.settings.control),
)
def reference_left_out_of_the_negative_pass(s: Subject) -> Iterator[Subject]:
    """The reference picture is read in the positive pass only."""
    calls = SimpleNamespace(n=0)

    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        calls.n += 1
        return {**inputs, "ref_image_hidden_states": ()} if calls.n % 2 == 0 else inputs

    with hooked(s.denoisers[0], change):
        yield s


def _ltx(name: str, off: Any) -> Any:
    """Applies where LTX's guidance option `name` has another value than `off`."""
    return lambda s: s.spec.family == "ltx2" and s.spec.own[name] != off


@variation(
    "guidance",
    shows=GUIDANCE,
    source="runcomfy ai-toolkit-inference ltx2.py passes none of LTX-2.3's guidance arguments",
    applies=_ltx("stg_scale", 0.0),
)
def spatio_temporal_guidance_off(s: Subject) -> Iterator[Subject]:
    """LTX-2.3 is sampled without its perturbed pass."""
    yield s.with_spec(stg_scale=0.0, audio_stg_scale=0.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="runcomfy ai-toolkit-inference ltx2.py passes none of LTX-2.3's guidance arguments",
    applies=_ltx("modality_scale", 1.0),
)
def modality_guidance_off(s: Subject) -> Iterator[Subject]:
    """LTX-2.3 is sampled without the pass in which sound and picture do not see each other."""
    yield s.with_spec(modality_scale=1.0, audio_modality_scale=1.0)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="runcomfy ai-toolkit-inference ltx2.py passes none of LTX-2.3's guidance arguments",
    applies=_ltx("guidance_rescale", 0.0),
)
def ltx_guidance_not_rescaled(s: Subject) -> Iterator[Subject]:
    """LTX-2.3's guided prediction keeps its own spread."""
    yield s.with_spec(guidance_rescale=0.0, audio_guidance_rescale=0.0)


@variation(
    "guidance",
    # The sound's scheduler is a copy that no trace follows; the next step's video reads the sound.
    shows="transformer input: audio_hidden_states",
    source="runcomfy ai-toolkit-inference ltx2.py; the pinned Diffusers' default gives the sound the video's scale",
    applies=_ltx("audio_guidance_scale", None),
)
def sound_guided_like_the_picture(s: Subject) -> Iterator[Subject]:
    """The sound takes the video's guidance scale."""
    yield s.with_spec(audio_guidance_scale=None)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Diffusers 0.42 LTX2Pipeline: defaults of LTX-2.3, also for LTX-2 (pipelines/families/ltx2.py)",
    applies=_ltx("stg_scale", 1.0),
)
def guidance_of_the_other_ltx(s: Subject) -> Iterator[Subject]:
    """LTX-2 is guided by LTX-2.3's defaults."""
    yield s.with_spec(modality_scale=3.0, guidance_rescale=0.7, audio_guidance_scale=7.0)


@variation(
    "guidance",
    shows=DENOISER,
    source="Diffusers' LTX2Pipeline use_cross_timestep: on for LTX-2.3, off for LTX-2",
    applies=families("ltx2"),
)
def cross_timestep_of_the_other_ltx(s: Subject) -> Iterator[Subject]:
    """The sound's and the picture's attention see the other's timestep, or do not."""
    yield s.with_spec(use_cross_timestep=not s.spec.own["use_cross_timestep"])


@variation(
    "guidance",
    shows=GUIDANCE,
    source="Lumina 2's cfg_trunc_ratio is 0.25 in Diffusers' example; the trainer leaves it at 1",
    applies=lambda s: s.guided and s.spec.family == "lumina2",
)
def guidance_in_the_first_steps_only(s: Subject) -> Iterator[Subject]:
    """Lumina 2 is guided in the first quarter of the schedule only."""
    with called_with(type(s.pipe), cfg_trunc_ratio=0.25):
        yield s


def _guided_flow(s: Subject) -> bool:
    # LTX-2's sound has a scheduler of its own, a copy of the video's.
    return s.guided and s.settings.steps > 1 and s.spec.family not in ("sd", "ltx2")


@variation(
    "guidance",
    shows=GUIDANCE,
    source="CFG-Zero*'s zero-init: WanVideoWrapper's use_zero_init, Diffusers' ClassifierFreeZeroStarGuidance",
    applies=_guided_flow,
)
def first_step_zeroed(s: Subject) -> Iterator[Subject]:
    """The first step's guided prediction is zero."""
    steps: list[int] = []

    def change(prediction: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return torch.zeros_like(prediction) if len(steps) == 1 else prediction

    yield s.with_predictions(change)


@variation(
    "guidance",
    shows=GUIDANCE,
    source="CFG-Zero* (ComfyUI's CFGZeroStar node, Wan2GP, WanVideoWrapper; Diffusers' guider of that name)",
    applies=lambda s: s.guided and s.spec.family == "wan",  # whose two passes are two calls, the words' first
)
def negative_prediction_scaled_to_fit(s: Subject) -> Iterator[Subject]:
    """The negative prediction is first scaled to lie as near to the positive one as it can."""
    passes: list[torch.Tensor] = []

    def change(guided: torch.Tensor) -> torch.Tensor:
        made = passes.copy()
        passes.clear()
        if len(made) == 1:  # another variation took the second away
            return guided
        positive, negative = made
        fit = (positive * negative).sum() / (negative.square().sum() + 1e-8)
        return negative * fit + s.settings.guidance_scale * (positive - negative * fit)

    with ExitStack() as stack:
        for denoiser in s.denoisers:
            stack.enter_context(answering(denoiser, lambda output: passes.append(output[0].float())))
        yield s.with_predictions(change)


@variation(
    "guidance",
    shows=DENOISER,
    source="trainer before 0.10.13, jobs without unconditional_lora_path: the second pass is the model's own",
    applies=lambda s: s.guided and s.spec.family == "ideogram4",
)
def second_pass_without_its_lora(s: Subject) -> Iterator[Subject]:
    """Ideogram 4's pass without text has no LoRA of its own."""
    with patched(s.pipe, "unconditional", ()):
        yield s


@variation(
    "guidance",
    shows=DENOISER,
    source="a LoRA for the pass without text, loaded as any other (load_lora_weights, ComfyUI's LoraLoader)",
    applies=families("ideogram4"),
)
def lora_of_the_second_pass_in_both(s: Subject) -> Iterator[Subject]:
    """The LoRA of Ideogram 4's pass without text is on in the other, too."""
    with ExitStack() as hooks:
        for layer, change in s.pipe.unconditional:
            hooks.callback(underneath(layer, change, s.pipe.transformer.dtype).remove)
        with patched(s.pipe, "unconditional", ()):
            yield s


@variation(
    "guidance",
    shows=NEGATIVE,
    source="trainer before 0.10.12, and every program that guides Ideogram 4 as other models: a negative prompt",
    applies=lambda s: s.guided and s.spec.family == "ideogram4",
)
def second_pass_reads_the_negative_prompt(s: Subject) -> Iterator[Subject]:
    """Ideogram 4's second pass reads the negative prompt."""
    yield s.with_spec(guidance="cfg")
