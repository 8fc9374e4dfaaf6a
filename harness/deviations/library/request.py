"""What was asked, understood otherwise: prompt flags, trigger word, negative prompt, seed, size, frames, steps."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from lora_drift.harness.check.divergence import CONTROL, NEGATIVE, NOISE, PICTURE, POSITIVE, SCHEDULE, SIZE
from lora_drift.harness.deviations.library.base import Subject, everywhere, posterior_first, variation
from lora_drift.pipelines.settings import resolve


def _head(s: Subject) -> str:
    return s.request.prompt.split("--")[0].strip()


@variation(
    "request",
    shows=POSITIVE,
    source="trainer toolkit/prompt_utils.py inject_trigger_into_prompt; cached prompts go without (SDTrainer.py)",
    applies=lambda s: bool(s.request.trigger_word) and "[trigger]" in s.request.prompt,
)
def trigger_word_not_replaced(s: Subject) -> Iterator[Subject]:
    """The prompt keeps the literal `[trigger]`, as the trainer itself does when it caches prompts."""
    yield replace(s, settings=resolve(s.spec, replace(s.request, trigger_word=None)))


@variation(
    "request",
    shows=POSITIVE,
    source="runcomfy ai-toolkit-inference parses no flags; trainer toolkit/config_modules.py does",
    applies=lambda s: "--" in s.request.prompt,
)
def prompt_flags_read_as_words(s: Subject) -> Iterator[Subject]:
    """Flags like `--w 512` reach the text encoder as words; their values are used all the same."""
    yield s.but(prompt=s.settings.prompt + s.request.prompt.strip()[len(_head(s)) :])


@variation(
    "request",
    shows=POSITIVE,
    source="interfaces with styles or prompt clean-up append to what was typed (A1111 styles, Fooocus)",
    applies=everywhere,
)
def prompt_ends_with_a_full_stop(s: Subject) -> Iterator[Subject]:
    """A wrapper completes the prompt with a full stop."""
    yield s.but(prompt=s.settings.prompt + ".")


@variation(
    "request",
    shows=NEGATIVE,
    source='runcomfy ai-toolkit-inference sends "" to Chroma; diffusers issue 13377: ignored without a mask',
    applies=lambda s: s.reads_negative and bool(s.settings.negative_prompt),
)
def negative_prompt_ignored(s: Subject) -> Iterator[Subject]:
    """The negative prompt is taken for an empty one."""
    yield s.but(negative_prompt="", negative_prompt_2="")


@variation(
    "request",
    shows=NEGATIVE,
    source="Diffusers' QwenImagePipeline example passes one space, because an empty string switches guidance off there",
    applies=lambda s: s.guided and not s.settings.negative_prompt and s.spec.family in ("qwen", "zimage", "flux2"),
)
def empty_negative_prompt_sent_as_a_space(s: Subject) -> Iterator[Subject]:
    """An empty negative prompt becomes a single space."""
    yield s.but(negative_prompt=" ", negative_prompt_2=" ")


@variation(
    "request",
    shows=NEGATIVE,
    source="ComfyUI's and Wan's workflows fill in a default negative prompt; the trainer's is empty",
    applies=lambda s: s.reads_negative and not s.settings.negative_prompt,
)
def negative_prompt_of_another_stack(s: Subject) -> Iterator[Subject]:
    """An empty negative prompt becomes the default of another program."""
    yield s.but(negative_prompt="low quality, blurry", negative_prompt_2="low quality, blurry")


@variation(
    "request",
    shows=lambda s: CONTROL if posterior_first(s) else NOISE,
    source="runcomfy ai-toolkit-inference: default seed + index of the prompt; trainer sample.walk_seed",
    applies=everywhere,
)
def seed_counts_up_with_the_prompt(s: Subject) -> Iterator[Subject]:
    """The second prompt of a list is rendered with seed + 1."""
    yield s.but(seed=s.settings.seed + 1)


def _unsnapped(s: Subject, divisor: int) -> tuple[int, int]:
    return tuple(n - n % divisor for n in (s.settings.asked_width, s.settings.asked_height))  # type: ignore[return-value]


def _other_divisor(s: Subject) -> int:
    return 16 if s.spec.size_divisor != 16 else 32


def _size_shows(size: Callable[[Subject], tuple[int, int]]) -> Callable[[Subject], str]:
    """OmniGen2 renders at multiples of 16 and stretches the picture at the end: another size may show only there."""

    def shows(s: Subject) -> str:
        same = all(a // 16 == b // 16 for a, b in zip(size(s), (s.settings.width, s.settings.height), strict=True))
        return PICTURE if s.spec.family == "omnigen2" and same else SIZE

    return shows


@variation(
    "request",
    shows=_size_shows(lambda s: _unsnapped(s, _other_divisor(s))),
    source="runcomfy ai-toolkit-inference: 16 in place of Qwen-Image's 32, 32 for Wan 2.2 and Flex.2",
    applies=lambda s: (
        _unsnapped(s, _other_divisor(s)) != (s.settings.width, s.settings.height)
        and s.spec.family != "hidream"
        and not (s.spec.family in ("flux", "chroma", "flux2", "wan", "lumina2", "ltx2")
                 and _other_divisor(s) < s.spec.size_divisor)
    ),
)  # fmt: skip
def size_snapped_to_another_divisor(s: Subject) -> Iterator[Subject]:
    """Width and height are floored to 32 in place of 16, or to 16 in place of 8 or 32."""
    width, height = _unsnapped(s, _other_divisor(s))
    yield s.but(width=width, height=height)


def _rounded_up(s: Subject) -> tuple[int, int]:
    step = s.spec.size_divisor
    return -(-s.settings.asked_width // step) * step, -(-s.settings.asked_height // step) * step


@variation(
    "request",
    shows=_size_shows(_rounded_up),
    source="ComfyUI's empty latent nodes and Diffusers' VaeImageProcessor examples round sizes up or to the nearest",
    # hidream_e1 refuses what its transformer has no room for.
    applies=lambda s: _rounded_up(s) != (s.settings.width, s.settings.height) and s.spec.id != "hidream_e1",
)
def size_rounded_up(s: Subject) -> Iterator[Subject]:
    """Width and height go up to the next multiple, where the trainer floors them."""
    width, height = _rounded_up(s)
    yield s.but(width=width, height=height)


def _other_frames(s: Subject) -> int:
    """Frames by the rule that the trainer has not for this model."""
    return resolve(replace(s.spec, frames_floored=not s.spec.frames_floored), s.request).num_frames


@variation(
    "request",
    shows=SIZE,
    source="families/wan.py: 8 frames become 5 or 9; newer Diffusers rounds LTX-2's otherwise than the trainer",
    applies=lambda s: _other_frames(s) != s.settings.num_frames,
)
def frame_count_of_another_stack(s: Subject) -> Iterator[Subject]:
    """A frame count between two legal ones goes to the other of them."""
    yield s.but(num_frames=_other_frames(s))


@variation(
    "request",
    shows=SIZE,
    source="runcomfy ai-toolkit-inference: 41 frames by default in place of 121; stacks differ in n and n + 1",
    applies=lambda s: s.spec.kind == "video" and s.settings.num_frames > 1,
)
def one_group_of_frames_more(s: Subject) -> Iterator[Subject]:
    """The video is one latent frame longer."""
    yield s.but(num_frames=s.settings.num_frames + s.spec.frame_step)


@variation(
    "request",
    shows=SCHEDULE,
    source="k-diffusion's get_sigmas(n) lays out n + 1 points; SD.Next and InvokeAI count steps otherwise",
    applies=everywhere,
)
def one_step_more(s: Subject) -> Iterator[Subject]:
    """Steps are counted one too many: n as n + 1."""
    yield s.but(steps=s.settings.steps + 1)


@variation(
    "request",
    shows=SCHEDULE,
    source="denoise strength below 1 in image-to-image calls leaves out the first steps",
    applies=lambda s: s.settings.steps > max(1, s.spec.fewest_steps),
)
def one_step_fewer(s: Subject) -> Iterator[Subject]:
    """Steps are counted one too few: n as n - 1."""
    yield s.but(steps=s.settings.steps - 1)
