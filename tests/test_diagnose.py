"""`lora-drift diagnose`: names what was done to a picture, whatever it was saved as, and says when it does not know."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner, Result

from lora_drift import pipelines
from lora_drift.harness.check import cases, results, runner, strips
from lora_drift.harness.check.divergence import NEGATIVE, SCHEDULE, agrees
from lora_drift.harness.check.trace import capture
from lora_drift.harness.cli import main
from lora_drift.harness.deviations.diagnosis import pictures, reuse, search, words
from lora_drift.harness.deviations.diagnosis.pictures import Picture
from lora_drift.harness.deviations.diagnosis.reuse import Memory, _key
from lora_drift.harness.deviations.diagnosis.search import Candidate, Diagnosis, Search, diagnose
from lora_drift.harness.deviations.library import LIBRARY, Subject, Variation, applicable
from lora_drift.harness.report.details import commands
from lora_drift.pipelines import MODELS, Pipeline
from lora_drift.pipelines.errors import RequestError
from lora_drift.pipelines.output import Media, Output
from lora_drift.pipelines.settings import Request, resolve
from lora_drift.pipelines.spec import TOOLKITS, age

REQUEST = Request("a red fox", negative="blurry", width=64, height=64, steps=3, guidance_scale=4.0, seed=7)
ASKED = ["--model", "sd15", "--mini", "--prompt", "a red fox", "--negative", "blurry", "--width", "64",
         "--height", "64", "--steps", "3", "--guidance", "4", "--seed", "7"]  # fmt: skip
FEW = ("negative prompt ignored", "guidance one less", "one step more", "base in float8", "levels truncated",
       "saved as jpeg", "size rounded up", "noise of another generator", "dynamic shift off", "lora off")  # fmt: skip


@pytest.fixture
def subject(pipeline_of: Callable[[str], Pipeline]) -> Subject:
    return Subject.of(pipeline_of("sd15"), REQUEST)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small library: what is tested is the search, not each of a hundred variations (the benchmark does)."""
    monkeypatch.setattr(search, "applicable", lambda s: (v for v in applicable(s) if v.name in FEW))


@pytest.fixture
def subject_of(pipeline_of: Callable[[str], Pipeline], lora_of: Callable[[str], Path]) -> Callable[[str], Subject]:
    """Case id -> what is rendered for it."""

    def subject(case_id: str) -> Subject:
        case = cases.load(cases.CASES / f"{case_id}.yaml")
        pipeline = pipeline_of(case.model)
        if case.lora:
            pipeline = pipeline.with_lora(lora_of(case_id), mode=case.lora.mode)
        return Subject.of(pipeline, runner.Bench.request(case))

    return subject


def frames_of(subject: Subject, *names: str) -> np.ndarray:
    if names:
        with LIBRARY[names[0]].applied(subject) as varied:
            return frames_of(varied, *names[1:])
    output = subject.pipeline.render(subject.settings)
    return np.stack([np.asarray(frame.convert("RGB")) for frame in output.frames])


def saved(frames: np.ndarray, path: Path, **options: Any) -> Path:
    Image.fromarray(frames[0]).save(path, **options)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, ["diagnose", *map(str, arguments)])


def test_every_kind_of_variation_has_its_place_in_the_search() -> None:
    # Kinds are the names of the library's modules: renaming one must not end every search.
    kinds = {v.kind for v in LIBRARY.values()}
    assert kinds == set(search.ORDER)
    assert kinds >= reuse.CHANGE_ENCODERS | reuse.CHANGE_DENOISERS | reuse.CHANGE_VAE


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_whether_guidance_reads_the_negative_prompt_is_known_of_every_model_at_every_version(
    toolkit: str, pipeline_of: Callable[[str], Pipeline]
) -> None:
    for spec in MODELS.values():
        if age(toolkit) >= age(spec.since):
            pipeline = pipelines.load(spec.id, toolkit=toolkit)
            settings = resolve(replace(pipeline.spec, controls=(0, 0)), Request("a fox"))
            assert Subject(pipeline, Request("a fox"), settings).guided in (True, False)


# ------------------------------------------------------------------------------------------------------------ codecs


def scenery(count: int = 1) -> np.ndarray:
    """Smooth, with edges and some grain."""
    x, y = np.meshgrid(np.linspace(0, 3, 96), np.linspace(0, 2, 72))
    grain = np.random.default_rng(0).normal(0, 6, (72, 96, 3))
    frames = [np.stack([120 + 90 * np.sin(x + i + c) * np.cos(y * c) + 40 * (x > 1.5) for c in (1, 2, 3)], -1) + grain
              for i in range(count)]  # fmt: skip
    return np.clip(frames, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "options", "codec"),
    [
        ("a.png", {}, "PNG, lossless"),
        ("a.webp", {"lossless": True}, "WEBP, lossless"),
        ("a.jpg", {"quality": 75}, "JPEG, quality 75, 4:2:0"),
        ("a.jpg", {"quality": 92, "subsampling": 0}, "JPEG, quality 92, 4:4:4"),
        ("a.jpg", {"quality": 30, "optimize": True, "progressive": True}, "JPEG, quality 30, 4:2:0"),
        ("a.jpg", {"qtables": [[9] * 64, [30] * 64]}, "JPEG, with quantisation tables of its own, 4:2:0"),
        ("a.gif", {}, "GIF"),
    ],
)
def test_pixels_come_out_as_the_file_has_them_when_saved_as_the_file_was(
    tmp_path: Path, name: str, options: dict[str, Any], codec: str
) -> None:
    frames = scenery()
    theirs = pictures.read(saved(frames, tmp_path / name, **options))
    assert theirs.codec.startswith(codec)
    assert theirs.again is not None and np.array_equal(theirs.again(frames), theirs.frames)


@pytest.mark.parametrize("quality", [20, 50, 75, 80, 90, 98])
def test_the_quality_of_a_webp_is_found_from_its_quantisers(tmp_path: Path, quality: int) -> None:
    frames = scenery()
    theirs = pictures.read(saved(frames, tmp_path / "a.webp", quality=quality))
    about = int(theirs.codec.removeprefix("WebP, quality about "))
    assert abs(about - quality) <= 8  # judged by what is left of the picture; for a candidate it is judged again
    assert theirs.again is not None and np.array_equal(theirs.again(frames), theirs.frames)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "H.264, crf 25.0"), ("a.mkv", "FFV1"), ("a.webp", "WebP")])
def test_videos_that_we_save_are_read_and_saved_again_to_the_bit(
    tmp_path: Path, name: str, codec: str, pipeline_of: Callable[[str], Pipeline]
) -> None:
    frames = scenery(9)
    settings = Subject.of(pipeline_of("sd15"), REQUEST).settings
    Output(Media([Image.fromarray(f) for f in frames]), settings, {}).save(tmp_path / name)
    theirs = pictures.read(tmp_path / name)
    assert theirs.codec.startswith(codec) and theirs.size == (9, 72, 96)
    assert theirs.again is not None and np.array_equal(theirs.again(frames), theirs.frames)


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_a_frame_that_is_repeated_is_one_long_frame_in_the_file(tmp_path: Path, name: str) -> None:
    frames = scenery(4)[[0, 0, 1, 2, 3]]
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / name, save_all=True, append_images=others, duration=62, loop=0)
    theirs = pictures.read(tmp_path / name)
    assert theirs.size[0] == 5
    assert theirs.again is not None and np.array_equal(theirs.again(frames), theirs.frames)


def test_a_checks_strip_of_frames_is_a_video_again(pipeline_of: Callable[[str], Pipeline], tmp_path: Path) -> None:
    # A check keeps the frames of a video one below the other in a PNG.
    asked = ["-m", "wan21_1b", "--mini", "-p", "a fox", "--frames", 5, "--width", 64, "--height", 48, "--steps", 2]
    output = pipeline_of("wan21_1b").sample("a fox", num_frames=5, width=64, height=48, steps=2)
    frames = [np.asarray(frame) for frame in output.frames]
    Image.fromarray(np.concatenate(frames)).save(tmp_path / "strip.png")
    done = run(*asked, "--image", tmp_path / "strip.png")
    assert done.exit_code == 0 and "It is the reference" in done.output, done.output


@pytest.mark.parametrize("note", ["0", "-1", "7", "many", "99999999"])
def test_a_note_of_frames_that_cannot_be_is_none(note: str, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(strips.FRAMES, note)
    Image.new("RGB", (8, 16)).save(tmp_path / "x.png", pnginfo=info)
    assert pictures.read(tmp_path / "x.png").size == (1, 16, 8)


def test_a_videos_drift_in_a_check_is_explained_as_a_video(
    subject_of: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # By --results and by the command that the report gives; one of another length, too (here 9 frames become 5).
    monkeypatch.setattr(search, "applicable", lambda s: (v for v in applicable(s) if v.name in FEW))
    case = cases.load(cases.CASES / "wan21_1b" / "snapped.yaml")
    render = runner.Bench.render

    def other(pipeline: Pipeline, settings: Any) -> Any:
        return render(pipeline, replace(settings, guidance_scale=settings.guidance_scale - 1))

    def shorter(pipeline: Pipeline, settings: Any) -> Any:
        return render(pipeline, replace(settings, num_frames=5))

    for mistake, said in ((other, 'Explained by "guidance one less"'), (shorter, "rendered at 80x64 with 5 frames")):
        with monkeypatch.context() as broken:
            broken.setattr(runner.Bench, "render", staticmethod(mistake))
            found = runner.check(runner.Bench(controls=False), case, tmp_path)
        assert found.verdict == "drift"
        results.write(tmp_path / "r.jsonl", [found])
        done = run("--results", tmp_path / "r.jsonl")
        assert done.exit_code == 0 and said in done.stdout, done.output
        (explained,) = results.read(tmp_path / "r.jsonl")
        assert explained.diagnosis is not None and said in explained.diagnosis.headline
        command = shlex.split(commands(found)["Diagnose, where the case matches"])
        assert command[:2] == ["lora-drift", "diagnose"]
        assert said in run(*command[2:]).stdout


@pytest.mark.parametrize("colours", [256, 64, 16])
def test_a_palette_is_a_codec(subject: Subject, tmp_path: Path, colours: int) -> None:
    frames = frames_of(subject)
    path = tmp_path / "squeezed.png"
    Image.fromarray(frames[0]).quantize(colours).save(path)
    read = pictures.read(path)
    assert not read.lossless and f"{colours} colours" in read.codec and read.again is not None
    assert np.array_equal(read.again(frames), read.frames)
    assert not np.array_equal(frames, read.frames)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled(subject: Subject, tmp_path: Path, name: str) -> None:
    grey = np.asarray(Image.fromarray(frames_of(subject)[0]).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(pictures.read(tmp_path / name).frames[0], np.repeat(grey[..., None], 3, axis=2))


def test_numbers_without_a_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(RequestError, match="floating-point numbers"):
        pictures.read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "other", "codec"),
    [
        ("a.mp4", "a.png", "H.264"),
        ("a.png", "a.mp4", "PNG, lossless"),
        ("a.webp", "a.mkv", "WebP"),
        ("a.mkv", "a.jpg", "FFV1"),
    ],
)
def test_a_kind_is_what_is_in_the_file_not_its_name(
    name: str, other: str, codec: str, pipeline_of: Callable[[str], Pipeline], tmp_path: Path
) -> None:
    video = name != "a.png"
    model, frames = ("wan21_1b", 5) if video else ("sd15", None)
    made = pipeline_of(model).sample("a fox", width=64, height=64, steps=2, seed=7, num_frames=frames)
    made.save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / other)
    read = pictures.read(tmp_path / other)
    assert read.codec.startswith(codec) and len(read.frames) == (5 if video else 1)


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.png", "a.mp4", "a.webp"):
        (tmp_path / name).write_bytes(b"no picture")
        with pytest.raises(RequestError, match=name):
            pictures.read(tmp_path / name)
    with pytest.raises(RequestError, match="no such file"):
        pictures.read(tmp_path / "absent.png")


# ------------------------------------------------------------------------------------------------------------- reuse


def one_of_each_kind(subject: Subject) -> Iterator[Variation]:
    seen: set[str] = set()
    for variation in applicable(subject):
        several = variation.kind in ("guidance", "output") or variation.name.startswith("lora in the")
        if variation.kind not in seen or several:
            seen.add(variation.kind)
            yield variation


@pytest.mark.parametrize("model", ["sd15", "flux", "zimage_turbo"])
def test_what_is_reused_changes_no_picture(
    model: str, pipeline_of: Callable[[str], Pipeline], lora_of: Callable[[str], Path]
) -> None:
    subject = Subject.of(pipeline_of(model).with_lora(lora_of(f"{model}/lora")), REQUEST)
    with Memory(subject) as memory:
        with memory.recording(subject):
            reference = frames_of(subject)
        for variation in one_of_each_kind(subject):
            with variation.applied(subject) as varied, memory.used(varied, (variation,)):
                reused = frames_of(varied)
            assert np.array_equal(reused, frames_of(subject, variation.name)), variation.name
    assert np.array_equal(reference, frames_of(subject))


def test_inputs_are_told_apart_by_what_is_in_them() -> None:
    one = torch.ones(1).expand(1)
    assert _key([one, {"a": None}]) == _key([torch.ones(1), {"a": None}])
    others = ([one.double(), {"a": None}], [one, {"a": 1}], [one, {"b": None}], [one[None], {"a": None}], [one * 2, {}])
    assert len({_key(value) for value in ([one, {"a": None}], *others)}) == 6
    assert _key([one.bfloat16().expand(3, 2)]) is not None
    assert _key([object()]) is None


def test_a_change_of_the_picture_alone_computes_no_denoising_step(subject: Subject) -> None:
    steps: list[int] = []
    with Memory(subject) as memory:
        with memory.recording(subject):
            frames_of(subject)
        handle = subject.denoisers[0].conv_in.register_forward_hook(lambda *_: steps.append(1))
        try:
            gamma = LIBRARY["gamma applied twice"]
            with gamma.applied(subject) as varied, memory.used(varied, (gamma,)):
                frames_of(varied)
            assert not steps
            frames_of(subject)
            assert steps
        finally:
            handle.remove()


# -------------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.jpg", {"quality": 75}), ("a.webp", {"quality": 80})])
@pytest.mark.usefixtures("few")
def test_the_cause_is_named_whatever_the_picture_was_saved_as(
    subject: Subject, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    theirs = saved(frames_of(subject, "negative prompt ignored"), tmp_path / name, **options)
    found = diagnose(subject, pictures.read(theirs), tier="mini")
    assert (found.verdict, found.ranking[0].variations) == ("explained", ["negative prompt ignored"])
    assert found.reference is not None and found.reference > 10 > (found.limit or 0)
    assert found.complete and found.tried >= 7


@pytest.mark.usefixtures("few")
def test_two_causes_at_once_are_found_as_a_pair(subject: Subject) -> None:
    pair = Picture.of(frames_of(subject, "one step more", "levels truncated"))
    found = diagnose(subject, pair, tier="mini")
    assert found.verdict == "explained"
    assert set(found.ranking[0].variations) == {"one step more", "levels truncated"}


@pytest.mark.usefixtures("few")
def test_the_same_picture_needs_no_explanation(subject: Subject) -> None:
    found = diagnose(subject, Picture.of(frames_of(subject)), tier="mini")
    assert (found.verdict, found.tried, found.reference) == ("same", 0, 0.0)


@pytest.mark.usefixtures("few")
def test_what_is_in_no_library_is_not_explained(subject: Subject) -> None:
    other = Subject.of(subject.pipeline, Request("a blue house", negative="grey", width=64, height=64, steps=3, seed=9))
    found = diagnose(subject, Picture.of(frames_of(other)), tier="mini")
    assert found.verdict == "unexplained" and found.complete


@pytest.mark.usefixtures("few")
def test_another_size_is_said_and_looked_for_first(pipeline_of: Callable[[str], Pipeline]) -> None:
    subject = Subject.of(pipeline_of("flux"), Request("a fox", width=72, height=64, steps=2, seed=1))
    assert (subject.settings.width, subject.settings.height) == (64, 64)
    found = diagnose(subject, Picture.of(frames_of(subject, "size rounded up")), tier="mini")
    assert found.size == "theirs is 80x64, the reference 64x64"
    assert (found.verdict, found.ranking[0].variations) == ("explained", ["size rounded up"])


@pytest.mark.usefixtures("few")
def test_a_size_of_no_rule_does_not_hide_what_else_differs(subject: Subject) -> None:
    large = subject.but(width=80)
    found = diagnose(subject, Picture.of(frames_of(large, "negative prompt ignored")), tier="mini")
    assert found.size == "theirs is 80x64, the reference 64x64" and found.verdict == "explained"
    assert set(found.ranking[0].variations) == {"another size", "negative prompt ignored"}


@pytest.mark.usefixtures("few")
def test_a_codec_whose_quality_is_unknown_never_gives_a_sure_answer(subject: Subject) -> None:
    theirs = Picture(frames_of(subject, "negative prompt ignored"), "vp9", None)
    found = diagnose(subject, theirs, tier="mini")
    assert (found.verdict, found.limit) == ("unexplained", None)
    assert found.ranking[0].variations == ["negative prompt ignored"]


@pytest.mark.usefixtures("few")
def test_after_a_search_the_same_render_gives_the_same_bytes(subject: Subject) -> None:
    before = frames_of(subject)
    diagnose(subject, Picture.of(frames_of(subject, "base in float8")), tier="mini")
    assert np.array_equal(frames_of(subject), before)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.usefixtures("few")
def test_the_command_says_the_cause_the_codec_and_its_floor(subject: Subject, tmp_path: Path) -> None:
    theirs = saved(frames_of(subject, "negative prompt ignored"), tmp_path / "theirs.jpg", quality=75)
    done = run(*ASKED, "--image", theirs)
    assert done.exit_code == 0, done.output
    assert 'Explained by "negative prompt ignored": The negative prompt is taken for an empty one.' in done.stdout
    assert "JPEG, quality 75, 4:2:0. It alone moves the reference by" in done.stdout
    assert "diffusers issue 13377" in done.stdout


@pytest.mark.usefixtures("few")
def test_json_holds_the_whole_ranking(subject: Subject, tmp_path: Path) -> None:
    theirs = saved(frames_of(subject, "guidance one less"), tmp_path / "theirs.png")
    found = json.loads(run(*ASKED, "--image", theirs, "--json").stdout)
    assert found["verdict"] == "explained" and found["headline"].startswith('Explained by "guidance one less"')
    distances = [c["distance"] for c in found["ranking"]]
    assert distances == sorted(distances) and len(distances) >= 7 and distances[0] <= found["limit"]


@pytest.mark.usefixtures("few")
def test_a_case_says_the_settings_itself(golden_of: Callable[[str], Any], tmp_path: Path) -> None:
    theirs = saved(golden_of("sd15/lora").frames(), tmp_path / "theirs.png")
    done = run("--case", "sd15/lora", "--image", theirs)
    assert done.exit_code == 0 and "It is the reference" in done.stdout
    done = run("--case", "sd15/lora", "--image", theirs, "--seed", 3)
    assert done.exit_code == 2 and "--seed: a case has its own settings" in done.stderr


@pytest.mark.usefixtures("few")
def test_nothing_that_explains_it_is_exit_code_1_and_says_how_far_the_best_came(tmp_path: Path) -> None:
    theirs = saved(scenery()[:, :64, :64], tmp_path / "theirs.png")
    done = run(*ASKED, "--image", theirs)
    assert done.exit_code == 1
    assert "Nothing in the library explains it" in done.stdout and "\n   1  " in done.stdout


@pytest.mark.parametrize(
    ("reference", "distances", "said"),
    [
        (10.0, [8.0, 9.0], 'The nearest is "0": The distance falls from 10.0 to 8.'),
        (10.0, [8.1], "no variation takes away as much as a fifth of the distance."),
        (10.0, [12.0], "no variation takes away as much as a fifth of the distance."),
        (10.0, [], "no variation takes away as much as a fifth of the distance."),
        (None, [30.0], 'The nearest is "0": At its size the distance is 30.0.'),
    ],
)
def test_a_variation_is_named_the_nearest_only_where_the_distance_really_fell(
    reference: float | None, distances: list[float], said: str
) -> None:
    found = diagnosed(reference, *(([str(n)], distance) for n, distance in enumerate(distances)))
    assert words.headline(found).removeprefix("Nothing in the library explains it").lstrip(".; ") == said
    assert words.text(found, 3).count("nearest") == words.for_report(found, 3).headline.count("nearest")
    assert (found.nearest is None) == ("no variation" in said)


def test_of_a_picture_of_another_size_a_pair_is_the_nearest_only_if_it_beats_each_alone_by_a_fifth() -> None:
    for pair, name in ((24.0, "0 + 1"), (25.0, "0")):
        found = diagnosed(None, (["0", "1"], pair), (["0"], 30.0))
        assert found.nearest is not None and found.nearest.name == name


def diagnosed(reference: float | None, *found: tuple[list[str], float]) -> Diagnosis:
    ranking = [Candidate(variations=names, about=[""] * len(names), sources=[], distance=d) for names, d in found]
    return Diagnosis(model="sd15", verdict="unexplained", reference=reference, limit=0.1, measured_limit=True,
                     ranking=ranking, not_compared=[], tried=len(ranking), complete=True, seconds=1)  # fmt: skip


def test_a_photo_that_was_turned_as_its_exif_says_is_explained(
    pipeline_of: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = (*FEW, "control image turned upright", "control image ignored")
    monkeypatch.setattr(search, "applicable", lambda s: (v for v in applicable(s) if v.name in few))
    photo, upright = tmp_path / "photo.jpg", tmp_path / "upright.png"
    exif = Image.Exif()
    exif[0x112] = 6
    Image.open(cases.ASSETS / "tall.png").save(photo, exif=exif, quality=95)
    Image.open(photo).transpose(Image.Transpose.ROTATE_270).save(upright)  # without the note
    asked = Request("a fox", width=64, height=64, steps=2, guidance_scale=3.0, seed=1, control=[str(photo)])
    subject = Subject.of(pipeline_of("omnigen2"), asked)
    theirs = frames_of(Subject.of(subject.pipeline, replace(asked, control=[str(upright)])))
    found = diagnose(subject, Picture.of(theirs), tier="mini")
    assert (found.verdict, found.ranking[0].variations) == ("explained", ["control image turned upright"])
    plain = Subject.of(subject.pipeline, replace(asked, control=[str(upright)]))
    assert "control image turned upright" not in [v.name for v in applicable(plain)]


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a (red fox:1.2) in the ((snow))", "a red fox in the snow"),
        ("a (big (red:.5) fox: -1)", "a big red fox"),
        (r"a fox \(red\), 3:4", r"a fox \(red\), 3:4"),
    ],
)
def test_weights_of_words_are_told_from_brackets(prompt: str, plain: str, subject: Subject) -> None:
    weighted = subject.but(prompt=prompt)
    left_out = LIBRARY["prompt weights left out"]
    assert left_out.applies(weighted) == (prompt != plain)
    with left_out.applied(weighted) as varied:
        assert varied.settings.prompt == plain
    for change in ("typography made plain", "unicode normalised", "html entities resolved"):
        assert not LIBRARY[change].applies(weighted)


@pytest.mark.usefixtures("few")
def test_ctrl_c_leaves_a_ranking(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = saved(frames_of(subject, "base in float8"), tmp_path / "theirs.png")
    tried: list[Any] = []
    original = Search._try

    def interrupted(self: Search, *args: Any) -> None:
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(args)
        original(self, *args)

    monkeypatch.setattr(Search, "_try", interrupted)
    done = run(*ASKED, "--image", theirs)
    assert done.exit_code == 130
    assert "Stopped after 3 tries" in done.stdout and "   3  " in done.stdout


@pytest.mark.usefixtures("few")
def test_a_budget_ends_the_search(subject: Subject, tmp_path: Path) -> None:
    theirs = saved(frames_of(subject, "base in float8"), tmp_path / "theirs.png")
    done = run(*ASKED, "--image", theirs, "--budget", "0.001", "--json")
    found = json.loads(done.stdout)
    assert not found["complete"] and found["tried"] == 0 and done.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ASKED], "--image: name the picture"),
        (["--image", "IMAGE"], "--case ID, or --model"),
        (["--image", "IMAGE", "--model", "sd15"], "--prompt: say what was rendered"),
        (["--image", "IMAGE", "--case", "sd15/nope"], "no such case or model: sd15/nope"),
        ([*ASKED, "--image", "nope.png"], "nope.png: no such file"),
        ([*ASKED, "--image", "ANIMATED"], "holds 3 frames; sd15 makes pictures"),
        ([*ASKED, "--image", "IMAGE", "--trace", "IMAGE"], "not a trace"),
        ([*ASKED, "--image", "IMAGE", "--budget", "0"], "--budget 0"),
        ([*ASKED, "--image", "IMAGE", "--seed", "-1"], "the picture has a seed"),
        ([*ASKED, "--image", "IMAGE", "--lora", "nope.safetensors"], "nope.safetensors"),
        ([*ASKED, "--image", "IMAGE", "--steps", "0"], "steps 0"),
    ],
)
def test_what_is_wrong_is_said_before_any_weights_load(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_args: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("lora_drift.pipelines.families.sd.load", load)
    Image.fromarray(scenery()[0]).save(tmp_path / "a.png")
    first, *others = (Image.fromarray(frame) for frame in scenery(3))
    first.save(tmp_path / "b.webp", save_all=True, append_images=others)
    files = {"IMAGE": str(tmp_path / "a.png"), "ANIMATED": str(tmp_path / "b.webp")}
    done = run(*(files.get(word, word) for word in arguments))
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


# ------------------------------------------------------------------------------------------------------------ traces


def stock_flux(path: Path, **scheduler: Any) -> Path:
    """A stock Diffusers script, with the three lines that trace it."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler)
    with capture(pipe) as trace:
        pipe("a red fox", width=64, height=64, num_inference_steps=3, guidance_scale=4.0,
             generator=torch.Generator().manual_seed(7))  # fmt: skip
    trace.save(path)
    return path


FLUX = ["--model", "flux", "--mini", "--prompt", "a red fox", "--width", "64", "--height", "64", "--steps", "3",
        "--guidance", "4", "--seed", "7"]  # fmt: skip


@pytest.mark.usefixtures("few")
def test_a_trace_of_a_stock_pipeline_is_explained_without_a_picture(tmp_path: Path) -> None:
    done = run(*FLUX, "--trace", stock_flux(tmp_path / "same.safetensors"))
    assert done.exit_code == 0 and "It is the reference" in done.stdout, done.output
    found = json.loads(run(*FLUX, "--trace", stock_flux(tmp_path / "t", use_dynamic_shifting=False), "--json").stdout)
    assert found["first_divergence"].startswith(SCHEDULE)
    assert (found["verdict"], found["ranking"][0]["variations"]) == ("explained", ["dynamic shift off"])


@pytest.mark.usefixtures("few")
def test_what_shows_where_the_traces_part_is_tried_first(subject: Subject, tmp_path: Path) -> None:
    with LIBRARY["negative prompt ignored"].applied(subject) as varied, capture(varied.pipe) as trace:
        frames = frames_of(varied)
    looked = Search(subject, Picture.of(frames), trace=trace, tier="mini")
    looked.run()
    found = looked.diagnosis()
    assert agrees(found.first_divergence, NEGATIVE)
    assert looked.candidates[0].variations == ["negative prompt ignored"] and found.verdict == "explained"


# ------------------------------------------------------------------------------------------------------- of a check


@pytest.mark.usefixtures("few")
def test_the_drifts_of_a_check_are_explained_in_its_results(
    subject_of: Callable[[str], Subject], tmp_path: Path
) -> None:
    varied, same = frames_of(subject_of("sd15/lora"), "guidance one less"), frames_of(subject_of("sd15/base"))
    fixed: dict[str, Any] = {"model": "sd15", "tier": "mini", "device": "cpu", "dtype": "float32"}
    fixed["tag"] = runner.newest_tag()
    found = [
        results.Result(
            case="sd15/lora", verdict="drift", output_picture=str(saved(varied, tmp_path / "1.png")), **fixed
        ),
        results.Result(case="sd15/base", verdict="drift", output_picture=str(saved(same, tmp_path / "2.png")), **fixed),
        results.Result(case="sd15/snapped", verdict="match", output_picture="never looked at", **fixed),
    ]
    file = tmp_path / "results.jsonl"
    results.write(file, found)
    done = run("--results", file, "--top", 2)
    assert done.exit_code == 1, "one of them has no explanation"
    assert 'sd15/lora: Explained by "guidance one less"' in done.stdout
    lora, base, snapped = (r.diagnosis for r in results.read(file))
    assert lora is not None and lora.ranking[0].name == "guidance one less" and len(lora.ranking) == 2
    assert lora.ranking[0].distance == 0
    assert base is not None and "it drifts here too" in base.headline
    assert snapped is None
    assert run("--results", file, "--seed", 3).exit_code == 2
    missing = run("--results", tmp_path / "no.jsonl")
    assert missing.exit_code == 2 and "--results" in missing.stderr


@pytest.mark.usefixtures("few")
def test_a_check_of_another_clone_is_explained_by_its_own_pictures(
    subject_of: Callable[[str], Subject], tmp_path: Path
) -> None:
    varied, place = frames_of(subject_of("sd15/lora"), "guidance one less"), "build/drift/sd15/lora.png"
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    for folder in (clone, elsewhere):
        (folder / place).parent.mkdir(parents=True)
    saved(varied, clone / place)
    fixed: dict[str, Any] = {"model": "sd15", "tier": "mini", "device": "cpu", "dtype": "float32"}
    drift = results.Result(case="sd15/lora", verdict="drift", output_picture=place, root=str(clone),
                           tag=runner.newest_tag(), **fixed)  # fmt: skip
    file = elsewhere / "build" / "results.jsonl"
    results.write(file, [drift])
    assert 'Explained by "guidance one less"' in run("--results", file).stdout
    (clone / place).rename(elsewhere / place)  # as an archive brings them: the results and the pictures of one folder
    assert 'Explained by "guidance one less"' in run("--results", file).stdout
    (elsewhere / place).unlink()
    missing = run("--results", file)
    assert missing.exit_code == 2 and "--results" in missing.stderr and f"copy {place}" in missing.stderr
