"""Variations: each leaves the pipeline as it was, is caught, and shows where it says it does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lora_drift.harness.check import divergence, goldens, runner
from lora_drift.harness.check.divergence import (
    CONTROL,
    DECODER,
    DENOISER,
    GUIDANCE,
    LORA,
    NEGATIVE,
    NOISE,
    PICTURE,
    POSITIVE,
    PROMPTS,
    SCHEDULE,
    STEP,
)
from lora_drift.harness.check.runner import Bench
from lora_drift.harness.check.trace import Trace
from lora_drift.harness.cli.main import app
from lora_drift.harness.deviations import mutation, mutation_report
from lora_drift.harness.deviations.equivalent import EQUIVALENT
from lora_drift.harness.deviations.library import LIBRARY, Subject, applicable, base
from lora_drift.harness.deviations.library.base import Variation, everywhere
from lora_drift.harness.deviations.mutation import Outcome
from lora_drift.harness.environment import facts, same_processor
from lora_drift.harness.tags import TagError
from lora_drift.pipelines import Pipeline
from lora_drift.pipelines.settings import Request

PLACES = {value for name, value in vars(divergence).items() if name.isupper() and isinstance(value, str)}


def rendered(subject: Subject) -> tuple[bytes, bytes]:
    ours = Bench.render(subject.pipeline, subject.settings)
    return ours.frames.tobytes(), ours.latents.tobytes()


@pytest.fixture
def subject(pipeline_of: Callable[[str], Pipeline], lora_of: Callable[[str], Path]) -> Subject:
    request = Request("a [trigger] fox --seed 3", width=72, height=72, steps=3, guidance_scale=3.0, multiplier=0.8,
                      trigger_word="sks")  # fmt: skip
    return Subject.of(pipeline_of("flux").with_lora(lora_of("flux/lora")), request)


# ------------------------------------------------------------------------------------------------------- the library


def test_each_variation_says_in_a_sentence_what_it_is_and_where_it_was_seen() -> None:
    assert len(LIBRARY) >= 40
    for variation in LIBRARY.values():
        assert variation.about.endswith(".") and variation.about[0].isupper(), variation.name
        assert len(variation.source) > 20, variation.name
    assert len({v.about for v in LIBRARY.values()}) == len(LIBRARY)


def test_what_a_variation_is_does_not_depend_on_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = dict(reversed(base.library().items()))
    monkeypatch.setattr(base, "_defined", {})

    @base.variation("adapter", shows=NOISE, source="a test", applies=everywhere)
    def lora_of_another(subject: Subject) -> Iterator[Subject]:
        """Another one."""
        yield subject

    assert base.library()["lora of another"].kind == "adapter"
    monkeypatch.setattr(base, "_defined", backwards)  # as if the modules were imported in another order
    assert [v.kind for v in base.library().values()] == [v.kind for v in LIBRARY.values()]


def test_after_each_variation_the_same_render_gives_the_same_bytes(subject: Subject) -> None:
    before = rendered(subject)
    tried = 0
    for variation in applicable(subject):
        with variation.applied(subject) as varied:
            Bench.render(varied.pipeline, varied.settings)
        assert rendered(subject) == before, variation.name
        tried += 1
    assert tried > 40


def test_an_error_inside_a_variation_puts_everything_back_too(subject: Subject) -> None:
    before = rendered(subject)
    for name in ("base in float8", "matrices multiplied in tf32", "noise drawn in bfloat16", "vae in bfloat16"):
        with pytest.raises(ZeroDivisionError), LIBRARY[name].applied(subject) as varied:
            Bench.render(varied.pipeline, varied.settings)
            raise ZeroDivisionError
    assert rendered(subject) == before


def test_two_variations_can_be_combined(subject: Subject) -> None:
    with LIBRARY["one step more"].applied(subject) as once, LIBRARY["lora off"].applied(once) as both:
        assert both.settings.steps == 4
        assert rendered(both) not in (rendered(subject), rendered(once))


# ------------------------------------------------------------------------------------------- caught, and where it began


FAST = {
    "sd15/lora": {
        "negative prompt ignored": NEGATIVE,
        "steps offset of the config": SCHEDULE,
        "noise of another generator": NOISE,
        "ddim instead of ddpm": STEP,
        "guidance one less": GUIDANCE,
        "alpha ignored": LORA,
        "base in int8": DENOISER,
        "lora inverted": DENOISER,
        "lora in the first half of the steps": DENOISER,
        "lora in the second half of the steps": DENOISER,
        "freeu": DENOISER,
        "second step from a cache": DENOISER,
        "vae decoding in tiles": DECODER,
        "levels truncated": PICTURE,
        "bt601 read as bt709": PICTURE,
        "bt709 read as bt601": PICTURE,
    },
    "sd15/text-encoder-trained": {
        "lora inverted": PROMPTS,
        "lora in the second half of the steps": DENOISER,
    },
    "flux/lora": {
        "trigger word not replaced": POSITIVE,
        "dynamic shift off": SCHEDULE,
        "noise drawn in bfloat16": NOISE,
        "true guidance for embedded": GUIDANCE,
        "last module not loaded": LORA,
        "single blocks not loaded": LORA,
        "layers for words not loaded": LORA,
        "later blocks not loaded": LORA,
        "second picture of a batch": NOISE,
        "base in float8 e5m2": DENOISER,
        "lora off": LORA,
        "multiplier ignored": DENOISER,
        "latents in float16": STEP,
        "saved as jpeg": PICTURE,
    },
    "flux/quantized": {"base not quantised": POSITIVE},
    "flux/text": {
        "typography made plain": POSITIVE,
        "unicode normalised": POSITIVE,
        "html entities resolved": POSITIVE,
    },
    "zimage/text": {"spaces collapsed": POSITIVE},
    "wan21_1b/lora": {"first step zeroed": GUIDANCE, "negative prediction scaled to fit": GUIDANCE},
    "qwen_image_edit_plus/ctrl-img": {"picture tokens not marked": POSITIVE},
    "flux2_klein_4b/reference": {
        "mu of stock diffusers": SCHEDULE,
        "references at the size of the picture": CONTROL,
        "guidance one more": GUIDANCE,
    },
}


SMALL = {"latents in float16"}
"""Changes about as small as what another processor rounds otherwise."""


def recorded_here(case: str) -> bool:
    golden = goldens.content(runner.newest_tag(), case)
    return golden is not None and same_processor(golden["environment"], facts("cpu", "float32"))


@pytest.mark.parametrize("case", FAST)
def test_a_case_notices_a_variation_and_the_first_divergence_names_where_it_began(case: str) -> None:
    runner.use_minihub()
    wanted = FAST[case]
    model = case.split("/")[0]
    found = list(mutation.outcomes(model, [case], runner.newest_tag(), lambda _model, name: name in wanted))
    assert {o.variation for o in found} == set(wanted)
    for outcome in found:
        assert outcome.verdict == "caught", outcome
        assert outcome.truth.startswith(wanted[outcome.variation]), outcome
        # On another processor than the golden's, what is as small as its rounding shows later than where it began.
        assert outcome.located or (outcome.variation in SMALL and not recorded_here(case)), outcome


def test_a_case_whose_trace_has_other_names_than_the_trainers_is_tried_last() -> None:
    runner.use_minihub()
    both = ["chroma/lokr-old", "chroma/lora"]
    (outcome,) = mutation.outcomes("chroma", both, runner.newest_tag(), lambda _m, name: name == "one step more")
    assert (outcome.verdict, outcome.case, outcome.named) == ("caught", "chroma/lora", "schedule: timesteps")


def test_a_variation_that_nothing_notices_survives_and_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(subject: Subject) -> Iterator[Subject]:
        yield subject

    harmless = Variation("harmless", "Nothing.", "a test", "request", everywhere, nothing, NOISE)
    monkeypatch.setitem(LIBRARY, "harmless", harmless)
    (outcome,) = mutation.outcomes("sd15", ["sd15/base"], runner.newest_tag(), lambda _model, name: name == "harmless")
    assert (outcome.verdict, outcome.case) == ("survived", "sd15/base")
    assert not mutation_report.passing([outcome])


def test_a_variation_that_cannot_be_rendered_is_not_counted_as_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> Iterator[Subject]:
        yield subject.but(width=-8)

    monkeypatch.setitem(LIBRARY, "broken", Variation("broken", "B.", "a test", "request", everywhere, broken, NOISE))
    (outcome,) = mutation.outcomes("sd15", ["sd15/base"], runner.newest_tag(), lambda _model, name: name == "broken")
    assert outcome.verdict == "error" and outcome.note
    assert not mutation_report.passing([outcome])


def test_half_precision_on_a_gpu_without_goldens_is_judged_by_the_nearest_set() -> None:
    runner.use_minihub()
    where, wanted = mutation.Where("cpu", "bfloat16", "8.0"), ("lora off", "levels truncated")
    found = mutation.outcomes("flux", [], runner.newest_tag(), lambda _model, name: name in wanted, where)
    verdicts = {outcome.variation: (outcome.verdict, outcome.case.partition("/")[0]) for outcome in found}
    # Half a level is less than what two architectures differ by; without its LoRA it is another picture.
    assert verdicts == {"lora off": ("caught", "flux"), "levels truncated": ("survived", "flux")}


def test_a_variation_is_asked_for_by_its_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["mutate", "--variation", "lora of"])
    assert (done.exit_code, 'did you mean "lora off"?' in " ".join(done.stderr.split())) == (2, True)
    done = CliRunner().invoke(app, ["mutate", "--variation", "lora off", "--dtype", "bfloat16", "--capability", "9.0"])
    assert (done.exit_code, "half precision is written whole" in " ".join(done.stderr.split())) == (2, True)
    file = tmp_path / "found.jsonl"
    file.write_text(outcome(model="sd15", variation="guidance off").model_dump_json() + "\n")  # of another run
    asked = ["--variation", "guidance one less", "--model", "sd15", "--case", "sd15/lora", "--json", str(file)]
    done = CliRunner().invoke(app, ["mutate", *asked, "--resume"])
    assert (done.exit_code, "1 of 1 caught" in done.stdout) == (0, True), done.output
    assert [o.variation for o in mutation.read(file)] == ["guidance off", "guidance one less"]


def test_a_compute_capability_is_a_number() -> None:
    done = CliRunner().invoke(app, ["mutate", "--capability", "sm80"])
    assert (done.exit_code, "--capability sm80" in done.stderr) == (2, True)


def test_an_unknown_model_is_named_before_anything_renders() -> None:
    done = CliRunner().invoke(app, ["mutate", "--model", "sd16"])
    assert done.exit_code == 2
    assert "sd16" in done.stderr


# ------------------------------------------------------------------------------------------------------------ scores


def outcome(**fields: Any) -> Outcome:
    defaults = {"model": "flux", "variation": "lora off", "verdict": "caught", "case": "flux/lora", "truth": LORA,
                "named": f"{LORA}: a.b, not applied", "boundary": "lora/a.b", "distance": 0.5}  # fmt: skip
    return Outcome.model_validate({**defaults, **fields})


def test_the_score_passes_with_equivalents_and_few_misnamed_boundaries() -> None:
    misnamed = outcome(named=NOISE, boundary="step0/noise")
    excused = outcome(variation="live for merged", verdict="equivalent", note="the same sum")
    assert mutation_report.passing([*[outcome()] * 19, misnamed, excused])
    assert not mutation_report.passing([*[outcome()] * 18, misnamed, excused])
    assert not mutation_report.passing([])


def test_the_report_lists_survivors_arguments_and_misnamed_boundaries(tmp_path: Path) -> None:
    found = [outcome(), outcome(variation="karras sigmas", verdict="survived", distance=1e-7),
             outcome(variation="live for merged", verdict="equivalent", note="the same sum in another order"),
             outcome(variation="one step more", named=NOISE, boundary="step0/noise", truth=SCHEDULE)]  # fmt: skip
    text = mutation_report.write(found, "v1", out=tmp_path / "mutation").read_text()
    assert "2 of 3 caught, 1 equivalent" in text
    assert "flux: karras sigmas (largest on flux/lora" in text and "SURVIVED" in text
    assert "the same sum in another order" in text
    assert "one step more (flux/lora): schedule, but named initial noise" in text and "lora*" in text
    assert '"lora off":["lora","LoRA: a.b, not applied"]' in (tmp_path / "mutation.json").read_text()


def test_a_run_of_some_variations_leaves_the_report_of_the_others_as_it_is(tmp_path: Path) -> None:
    misnamed = outcome(variation="one step more", truth=SCHEDULE, named=f"{NOISE} (or so)", boundary="step0/noise")
    excused = outcome(variation="live for merged", verdict="equivalent", distance=1e-6, truth=DENOISER, named="",
                      note=EQUIVALENT["live for merged", ""])  # fmt: skip
    words = outcome(variation="lora applied twice", truth=PROMPTS, named=f"{PROMPTS}: positive (text_encoder)")
    whole = [outcome(), misnamed, excused, words]
    report = tmp_path / "mutation"
    mutation_report.write(whole, "v1", out=report)
    before = [report.with_suffix(suffix).read_text() for suffix in (".md", ".json")]
    again = mutation_report.with_committed([outcome()], ["lora off"], "v1", report)
    mutation_report.write(again, "v1", out=report)
    kept = [report.with_suffix(suffix).read_text() for suffix in (".md", ".json")]
    # Where a stage depends on what is rendered, its name is all that is kept.
    assert [kept[0].replace(POSITIVE, PROMPTS), kept[1]] == before
    survivor = outcome(verdict="survived", distance=0.0)
    mutation_report.write(mutation_report.with_committed([survivor], ["lora off"], "v1", report), "v1", out=report)
    assert "2 of 3 caught, 1 equivalent" in report.with_suffix(".md").read_text()
    with pytest.raises(TagError, match="is of v1, this run of v2"):
        mutation_report.with_committed([], ["lora off"], "v2", report)


def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text(outcome().model_dump_json() + "\n" + outcome().model_dump_json()[:40])
    assert mutation.read(file) == [outcome()]
    assert mutation.read(tmp_path / "absent") == []


# -------------------------------------------------------------------------------------------------------- localising


def trace_of(**values: Any) -> Trace:
    trace = Trace()
    for name, value in values.items():
        trace.add(name, np.asarray(value, dtype=np.float64))
    return trace


def located(golden: Trace, ours: Trace, **facts: Any) -> str:
    first = divergence.first(divergence.distances(golden, ours), lambda _stage: 1e-5)
    assert first is not None
    return divergence.place(first, golden, ours, facts)


def test_noise_is_named_although_it_is_seen_after_the_prediction_that_it_changed() -> None:
    x = np.random.default_rng(0).standard_normal((1, 8, 4))
    names = ("step0/denoiser#0.hidden_states", "step0/denoiser#0", "step0/noise", "step0/latents")
    assert located(trace_of(**dict.fromkeys(names, x)), trace_of(**dict.fromkeys(names, x + 1))) == NOISE


def test_rounding_on_the_way_is_no_cause_where_the_final_latents_are_equal() -> None:
    x = np.random.default_rng(0).standard_normal((1, 8, 4))
    golden = trace_of(**dict.fromkeys(("step2/denoiser#0", "decode/in", "decode/out"), x))
    assert located(golden, trace_of(**{"step2/denoiser#0": 1.01 * x, "decode/in": x, "decode/out": x + 1})) == (
        f"{DECODER}: VAE"
    )


def test_a_control_image_is_named_where_the_noise_in_the_same_tensor_is_equal() -> None:
    x = np.random.default_rng(0).standard_normal((1, 8, 4))
    golden = trace_of(**{"step0/denoiser#0.hidden_states": x, "step0/noise": x})
    ours = trace_of(**{"step0/denoiser#0.hidden_states": x + 1, "step0/noise": x})
    assert located(golden, ours, control=("a.png",)) == CONTROL


@pytest.mark.parametrize("references", [0, 5], ids=["none", "read by the first call only"])
def test_the_trainers_guided_prediction_is_worked_out_where_it_steps_without_a_scheduler(references: int) -> None:
    generator = np.random.default_rng(0)
    x, p = generator.standard_normal((2, 1, 8, 4))
    begun = np.concatenate([x, generator.standard_normal((1, references, 4))], axis=1)
    golden = {"step0/denoiser#0.hidden_states": begun, "step0/denoiser#0.timestep": [1.0], "step0/denoiser#0": p,
              "step1/denoiser#0.hidden_states": x - 0.25 * p, "step1/denoiser#0.timestep": [0.75]}  # fmt: skip
    ours = {**golden, "schedule/sigmas": [1.0, 0.75], "step0/noise": x, "step0/scheduler.prediction": p,
            "step0/latents": x - 0.25 * p}  # fmt: skip
    assert divergence.distances(trace_of(**golden), trace_of(**ours))["step0/scheduler.prediction"] < 1e-5
    wrong = ours | {"step0/scheduler.prediction": 2 * p, "step1/denoiser#0.hidden_states": x - 0.5 * p}
    assert located(trace_of(**golden), trace_of(**wrong)).startswith(GUIDANCE)


def test_a_step_that_is_missing_is_said_to_be() -> None:
    golden = trace_of(**{"step0/denoiser#0": [1.0, 2.0], "step1/denoiser#0": [3.0, 4.0]})
    assert located(golden, trace_of(**{"step0/denoiser#0": [1.0, 2.0]})) == "schedule: there is no step 1"


def test_places_of_tokens_that_only_have_a_dimension_of_one_more_are_no_other_number_of_tokens() -> None:
    places = np.arange(12.0).reshape(4, 3)
    golden = trace_of(**{"step0/denoiser#0.position_ids": places[None]})
    ours = trace_of(**{"step0/denoiser#0.position_ids": 2 * places})
    assert located(golden, ours, control=("a.png",)).startswith("conditioning: position_ids")


def test_other_words_are_named_as_tokens_where_the_golden_has_them() -> None:
    x = np.random.default_rng(0).standard_normal((1, 8, 4))
    golden = trace_of(**{"encode/text_encoder#1": x, "step0/denoiser#0.encoder_hidden_states": x})
    ours = trace_of(**{"encode/text_encoder#1": x + 1, "step0/denoiser#0.encoder_hidden_states": x + 1})
    assert located(golden, ours) == "prompt embeds: negative (text_encoder)"
    golden.tokens, ours.tokens = ({"tokens/text_encoder#1": np.array([[1, last]])} for last in (2, 3))
    named = located(golden, ours)
    assert named == "tokens: negative (text_encoder)"
    assert divergence.agrees(named, NEGATIVE) and divergence.agrees(named, PROMPTS)
    assert not divergence.agrees(named, POSITIVE) and not divergence.agrees(named, NOISE)


def test_equal_inputs_with_the_lora_in_another_mode_are_said_to_be_that() -> None:
    golden = trace_of(**{"lora/a": [1.0], "step0/denoiser#0": [1.0, 2.0]})
    ours = trace_of(**{"lora/a": [1.0], "step0/denoiser#0": [1.0, 2.1]})
    named = located(golden, ours, lora_mode="live", golden_lora_mode="merged")
    assert named.startswith(DENOISER) and "LoRA live, in the trainer merged" in named


def test_the_places_of_the_library_are_those_of_the_localiser(subject: Subject) -> None:
    for variation in applicable(subject):
        assert variation.shows(subject).partition(":")[0] in PLACES, variation.name
