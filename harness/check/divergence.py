"""Where a run leaves its golden: from distances at traced stages to the component that did it, in words.

A place is one of the constants below, with details behind a colon: "prompt embeds: negative (text_encoder_2)". What
comes first is decided by what can cause what, not by the order in which hooks fired: noise is only seen when the
scheduler makes its first step, but the denoiser has read it before.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lora_drift.harness.check.trace import Trace, errors, sketch, without_ones

LORA = "LoRA"
TOKENS = "tokens"
PROMPTS = "prompt embeds"
POSITIVE = "prompt embeds: positive"
NEGATIVE = "prompt embeds: negative"
CONTROL = "control image"
SCHEDULE = "schedule"
NOISE = "initial noise"
SIZE = "size"
CONDITIONING = "conditioning"
GUIDANCE = "guidance"
INPUT = "transformer input"
DENOISER = "denoiser"
STEP = "scheduler step"
DECODER_INPUT = "decoder input"
DECODER = "decoder"
PICTURE = "post-processing"
SOUND = "sound"

PIXELS, AUDIO = "picture", "sound"
"""Stages behind the traced ones: the finished pixels and the sound."""

LATENTS = ("hidden_states", "sample", "x", "img", "audio_hidden_states")
TIMES = ("timestep", "timesteps", "t", "sigma", "audio_timestep", "audio_sigma")
TEXTS = ("encoder_hidden_states", "encoder_hidden_states_t5", "encoder_hidden_states_llama3", "text_hidden_states",
         "cap_feats", "txt", "pooled_projections", "pooled_embeds", "encoder_attention_mask", "text_attention_mask",
         "audio_encoder_hidden_states", "audio_encoder_attention_mask", "encoder_hidden_states_mask",
         "attention_mask")  # fmt: skip
IMAGES = ("encoder_hidden_states_image", "ref_image_hidden_states")
ALIASES = (
    ("tokens/text_encoder_2#", "tokens/text_encoder#"),
    ("encode/text_encoder_2#", "encode/text_encoder#"),
    (".img", ".hidden_states"),
    (".txt", ".encoder_hidden_states"),
    (".timesteps", ".timestep"),
)
"""The trainer's Chroma says the left, Diffusers' the right (its one text encoder is the second of Flex.1)."""
_PARTS = re.compile(r"step(\d+)/(?:denoiser#(\d+)(?:\.(\w+))?|(.+))")


def distances(golden: Trace, ours: Trace) -> dict[str, float]:
    """`trace.errors`, after bringing the golden's names to ours and filling in what its pipeline did not show."""
    names = {name: _ours(name, ours) for name in golden.sketches}
    named = Trace(
        {names[n]: s for n, s in golden.sketches.items()},
        {names[n]: s for n, s in golden.shapes.items()},
        {_ours(name, ours): ids for name, ids in golden.tokens.items()},
    )
    completed, steps = _completed(named, ours)
    # A difference divided by a small step is inexact by as much more.
    found = {name: error * steps.get(name, 1.0) for name, error in errors(completed, ours).items()}
    # Pictures that the denoiser reads in an argument of their own must be there.
    absent = {name: float("inf") for name in named.sketches if name not in found and name.endswith(IMAGES)}
    return found | absent


def _ours(name: str, ours: Trace) -> str:
    known = ours.sketches.keys() | ours.tokens.keys()
    for theirs, our in ALIASES:
        if name not in known and (alias := name.replace(theirs, our)) in known:
            return alias
    return name


def _completed(golden: Trace, ours: Trace) -> tuple[Trace, dict[str, float]]:
    """With the guided predictions of a pipeline that steps without a scheduler (FLUX.2 in the trainer), and the lengths
    of their steps.

    Its step is Euler's, x' = x + (t' - t) p, and sketches are linear: p follows from the inputs of two steps. Pictures
    behind the latents in the sequence are the same in both and cancel; those that only the first call reads (Krea 2)
    are ours, without our noise: where they are not the golden's, that shows before.
    """
    if any(name.startswith("schedule/") for name in golden.sketches) or "schedule/sigmas" not in ours.sketches:
        return golden, {}
    sketches, shapes = dict(golden.sketches), dict(golden.shapes)
    unit, lengths = "step{}/denoiser#0.{}", {}
    for step in range(len(golden.sketches)):
        now, then = unit.format(step, "timestep"), unit.format(step + 1, "timestep")
        name = f"step{step}/scheduler.prediction"
        if then not in sketches or name not in ours.sketches:
            break
        difference = _number(sketches[then]) - _number(sketches[now])
        inputs = [unit.format(s, "hidden_states") for s in (step, step + 1)]
        x, x_then = (sketches[stage].astype(np.float64) for stage in inputs)
        if golden.shapes[inputs[0]] != golden.shapes[inputs[1]]:
            x -= ours.sketches[inputs[0]].astype(np.float64) - ours.sketches["step0/noise"]
        sketches[name], shapes[name] = (x_then - x) / difference, ours.shapes[name]
        lengths[name] = abs(difference)
    return Trace(sketches, shapes, golden.tokens), lengths


def _number(sketched: np.ndarray) -> float:
    """The one number of which this is the sketch."""
    return float(sketched @ sketch(np.ones(1)))


def first(found: Mapping[str, float], limit: Callable[[str], float]) -> str | None:
    """The stage beyond its limit that comes first in the order of causes. `limit`: stage -> tolerance.

    What does not reach the final latents is no cause of what comes after them.
    """
    beyond = [name for name, error in found.items() if not error <= limit(name)]
    if found.get("decode/in", float("inf")) <= limit("decode/in"):
        beyond = [name for name in beyond if name == "decode/out"]
    return min(beyond, key=_rank, default=None)


def _rank(stage: str) -> tuple[int, int]:
    """(step, place within it); what is laid out before the first step counts as a step of its own."""
    if stage.startswith("lora/"):
        return -2, 0
    if stage.startswith("tokens/"):
        return -1, 0
    if stage.startswith("encode/"):
        return -1, 1
    if stage.startswith("schedule/"):
        return -1, 3
    parts = _PARTS.fullmatch(stage)
    if parts is None:
        return 10**6, ["decode/in", "decode/out", PIXELS, AUDIO].index(stage)
    step, _, argument, other = parts.groups()
    if argument in TEXTS:
        return -1, 2
    if argument in TIMES:
        return (-1, 4) if step == "0" else (int(step), 0)
    if step == "0" and argument in IMAGES:
        return -1, 5
    if other == "noise":
        return -1, 6
    if argument is not None:
        return (int(step), 1) if step != "0" or argument in LATENTS else (-1, 4)
    return int(step), {"scheduler.prediction": 3, "latents": 4}.get(other or "", 2)


def kind(stage: str) -> str:
    """What a stage is one of. Rounding spreads alike over the stages of a kind, and otherwise over the next."""
    if stage.startswith("lora/"):
        return LORA
    if stage.startswith("decode/"):
        return DECODER_INPUT if stage == "decode/in" else DECODER
    if stage.rpartition(".")[2] in TIMES:
        return SCHEDULE
    step, within = _rank(stage)
    if step == -1:
        return (TOKENS, PROMPTS, PROMPTS, SCHEDULE, CONDITIONING, CONTROL, NOISE)[within]
    return (SCHEDULE, INPUT, DENOISER, GUIDANCE, STEP)[within]


def place(stage: str, golden: Trace, ours: Trace, facts: Mapping[str, Any]) -> str:
    """The component that a stage belongs to, in words. `facts` are the settings of the run."""
    if stage.startswith("lora/"):
        missing = "" if stage in ours.sketches else ", not applied"
        return f"{LORA}: {stage.removeprefix('lora/')}{missing}"
    if stage in (PIXELS, AUDIO):
        return PICTURE if stage == PIXELS else SOUND
    if stage == "decode/in":
        return f"{DECODER_INPUT}: scaling of the final latents"
    if stage == "decode/out":
        return f"{DECODER}: VAE"
    if _resized(golden, ours):
        return f"{SIZE}: of the latents, or the number of frames"
    if _passes(golden) != _passes(ours):
        return f"{GUIDANCE}: {_passes(ours)} passes a step instead of {_passes(golden)}"
    if stage.startswith("tokens/"):
        role, _, number = stage.removeprefix("tokens/").partition("#")
        return f"{TOKENS}: {'positive' if number == '0' else 'negative'} ({role})"
    if stage.startswith("encode/"):
        return _encoder(stage, golden)
    if stage.startswith("schedule/"):
        return f"{SCHEDULE}: {stage.removeprefix('schedule/')}"
    theirs, our = golden.shapes.get(stage), ours.shapes.get(stage)
    words = stage.endswith(TEXTS) or stage.startswith("encode/")
    if facts.get("control") and theirs and our and without_ones(theirs) != without_ones(our) and not words:
        # Tokens, their places and their times: more or fewer of them are those of control images.
        return f"{CONTROL}: another number of tokens"
    prediction = stage.replace("scheduler.prediction", "denoiser#0")
    if _passes(golden) == 1 and golden.shapes.get(prediction) != ours.shapes.get(prediction):
        # Unguided, so that the scheduler gets what the denoiser gave, which the two sides lay out otherwise.
        stage = prediction
    return _in_step(stage, golden, ours, facts)


def agrees(place: str, expected: str) -> bool:
    """Is `place` where a change of the `expected` part of the graph shows? Other words show in the tokens already, if
    the recording has them."""
    return place.startswith((expected, expected.replace(PROMPTS, TOKENS)))


def _in_step(stage: str, golden: Trace, ours: Trace, facts: Mapping[str, Any]) -> str:
    parts = _PARTS.fullmatch(stage)
    assert parts is not None, stage
    step, call, argument, other = parts.groups()
    if not any(name.startswith(f"step{step}/") for name in ours.sketches):
        return f"{SCHEDULE}: there is no step {step}"
    if other == "noise":
        return NOISE
    if other is not None:
        return f"{GUIDANCE}: step {step}" if other == "scheduler.prediction" else f"{STEP}: {step}"
    if argument is None:
        return f"{DENOISER}: its prediction at step {step}, pass {call}{_suspects(facts)}"
    if argument in TIMES:
        return f"{SCHEDULE}: {argument} as the denoiser reads it at step {step}"
    if argument in TEXTS:
        apart = _calls(golden) > 1 or _passes(golden) == 1  # else one call reads all prompts
        sign = (POSITIVE, NEGATIVE)[int(call)] if call in "01" and apart else PROMPTS
        return f"{sign} ({argument})"
    if argument == "guidance":
        return f"{GUIDANCE}: the scale as the denoiser reads it"
    if argument in IMAGES:
        return f"{CONTROL} ({argument})"
    if argument in LATENTS and step == "0":
        if "step0/noise" in golden.sketches:  # with equal noise, what else is in there are control images
            return CONTROL if facts.get("control") else f"{INPUT} 0"
        return f"{CONTROL}: or the noise, which is not seen apart from it" if facts.get("control") else NOISE
    if argument in LATENTS:
        # Where the trainer steps without a scheduler, only the next input shows what came of a step.
        stepped = argument != "audio_hidden_states" and f"step{int(step) - 1}/latents" not in golden.sketches
        return f"{STEP}: {int(step) - 1}" if stepped else f"{INPUT}: {argument} at step {step}"
    return CONTROL if argument == "img_ids" and facts.get("control") else f"{CONDITIONING}: {argument}"


def _suspects(facts: Mapping[str, Any]) -> str:
    """What a prediction depends on that has no stage of its own."""
    ours, golden = facts.get("lora_mode"), facts.get("golden_lora_mode")
    if ours != golden:
        return f" (LoRA {ours}, in the trainer {golden})"
    return " (same inputs and LoRA deltas: its weights, its arithmetic or the LoRA's multiplier)"


def _encoder(stage: str, golden: Trace) -> str:
    role, _, number = stage.removeprefix("encode/").partition("#")
    if role.startswith("image"):
        return f"{CONTROL} ({role})"
    return f"{POSITIVE if number == '0' else NEGATIVE} ({role})"


def _calls(trace: Trace) -> int:
    return len({m[2] for name in trace.sketches if (m := _PARTS.fullmatch(name)) and m[1] == "0" and m[2]})


def _passes(trace: Trace) -> int:
    """Denoiser evaluations in the first step, counting the rows of a batch."""
    rows = 0
    for call in range(_calls(trace)):
        shapes = (trace.shapes.get(f"step0/denoiser#{call}.{argument}") for argument in (*TIMES, "sample"))
        rows += next((shape[0] for shape in shapes if shape), 1)
    return rows


def _resized(golden: Trace, ours: Trace) -> bool:
    """Latents of another shape: as they are decoded, whatever a denoiser makes of them."""
    a, b = golden.shapes.get("decode/in"), ours.shapes.get("decode/in")
    return a is not None and b is not None and a != b
