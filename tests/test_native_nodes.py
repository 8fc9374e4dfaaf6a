"""The pack's nodes for ComfyUI's own graphs, against a stand-in of ComfyUI (comfy_contract.py)."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import SYSTEM_MESSAGE, format_input
from PIL import Image

from lora_drift.harness.native import graphs, lora, resize, sampling, schedule
from lora_drift.pipelines import MODELS, load, noise
from lora_drift.pipelines.errors import LoraError
from lora_drift.pipelines.settings import Request, resolve

contract = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("comfy_contract.py"))))


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with contract.loaded(contract.Comfy(tmp_path), monkeypatch.setitem) as pack:
        yield pack.nodes


@pytest.fixture
def native(pack: Any) -> Any:
    return pack.native


def run(node: Any, **inputs: Any) -> tuple[Any, ...]:
    return tuple(contract.execute(node, inputs))


class Model:
    """What a MODEL is to a node that patches it."""

    def __init__(self) -> None:
        self.guides: Any = None
        self.applies: Any = None
        self.beside: list[Any] = []
        self.patches: dict[Any, Any] = {}
        self.model: Any = None
        self.weights: dict[str, torch.Tensor] = {}

    def get_key_patches(self, prefix: str) -> dict[str, Any]:
        """The weights that were loaded, each with how it is converted; and what patches them, from a node before."""
        assert all(name.startswith(prefix) for name in self.weights)
        return {name: [(weight, None), ("a patch",)] for name, weight in self.weights.items()}

    def clone(self) -> Model:
        return Model()

    def add_patches(self, patches: dict[Any, Any]) -> None:
        self.patches |= patches

    def set_model_sampler_cfg_function(self, function: Any) -> None:
        self.guides = function

    def set_model_unet_function_wrapper(self, function: Any) -> None:
        self.applies = function

    def set_additional_models(self, _name: str, models: list[Any]) -> None:
        self.beside = models


def test_the_sampler_asks_velocity_models_at_the_rounded_timestep(native: Any) -> None:
    """UniPC rounds timesteps to whole numbers; its sigmas are not."""
    sampler, sigmas = run(native.TrainerSampler, like="wan21_1b", steps=3, width=64, height=64)
    asked: list[float] = []

    class Guider:
        inner_model = SimpleNamespace(model_sampling=None)

        def __call__(self, latents: Any, sigma: Any, **_options: Any) -> Any:
            asked.append(float(sigma[0]))
            return latents - sigma.reshape(-1, 1, 1, 1, 1)

    steps: list[int] = []
    noise = torch.randn(1, 16, 2, 8, 8)
    sampler.sample(Guider(), sigmas, {"seed": 1}, lambda step, *_: steps.append(step), noise)
    scheduler = schedule.scheduler(MODELS["wan21_1b"], 3, 64, 64)
    assert np.allclose(asked, scheduler.timesteps.numpy() / 1000)
    assert not np.allclose(asked, scheduler.sigmas[:-1].numpy(), atol=1e-6)
    assert steps == [0, 1, 2] and len(sigmas) == 4


def test_the_sampler_gives_noise_models_what_they_divide_again(native: Any) -> None:
    """ComfyUI's input of such a model is latents * sqrt(1 + sigma^2); the noise that it predicted comes back."""
    sampler, sigmas = run(native.TrainerSampler, like="sd15", steps=2, width=64, height=64)
    table = torch.linspace(0.1, 14.0, 1000)
    seen: list[Any] = []

    class Guider:
        inner_model = SimpleNamespace(model_sampling=SimpleNamespace(sigmas=table))

        def __call__(self, latents: Any, sigma: Any, **_options: Any) -> Any:
            inner = latents / (1 + sigma**2) ** 0.5
            seen.append(inner)
            return latents - 0.5 * inner * sigma  # the noise predicted is half of what the model saw

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = sampler.sample(Guider(), sigmas, {"seed": 3}, None, noise)
    scheduler = schedule.scheduler(MODELS["sd15"], 2, 64, 64)
    theirs = sampling.sample(scheduler, noise, lambda latents, _: 0.5 * latents, 3, lambda *_: None)
    assert torch.allclose(seen[0], noise, atol=1e-5) and torch.allclose(ours, theirs, atol=1e-4)


def test_guidance_is_that_of_the_family(native: Any) -> None:
    positive, negative = torch.randn(2, 1, 16, 8, 6)
    args = {"cond": positive, "uncond": negative, "cond_scale": 4.0}
    (qwen,) = run(native.Guidance, model=Model(), like="qwen_image", rescale=0.0)
    assert torch.equal(qwen.guides(args), sampling.guided("qwen", positive, negative, 4.0, 0.0))
    (sdxl,) = run(native.Guidance, model=Model(), like="sdxl", rescale=0.7)
    assert torch.equal(sdxl.guides(args), sampling.guided("sd", positive, negative, 4.0, 0.7))
    assert not torch.allclose(sdxl.guides(args), qwen.guides(args))


def test_noise_is_that_of_the_dtype_and_torch_of_the_trainer(native: Any) -> None:
    latent = {"samples": torch.zeros(1, 16, 4, 4)}

    def drawn(dtype: str, stream: Any) -> torch.Tensor:
        (source,) = run(native.Noise, noise_seed=7, dtype=dtype, stream=stream)
        assert source.seed == 7
        return torch.as_tensor(source.generate_noise(latent))

    plain = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn("float32", "torch-2.11"), plain)
    assert torch.equal(drawn("bfloat16", "torch-2.13"), plain.bfloat16().float())
    theirs = noise.normal((1, 16, 4, 4), noise.seeded(7, "torch-2.11"), torch.bfloat16).float()
    assert torch.equal(drawn("bfloat16", "torch-2.11"), theirs) and not torch.allclose(theirs, plain, atol=0.1)


# ------------------------------------------------------------------------------------------------------------- LoRAs


def in_comfyui(transformer: Any) -> dict[str, torch.Tensor]:
    """Weights of Lumina 2 by ComfyUI's names, which has queries, keys and values in one."""
    weights = {name: tensor for name, tensor in transformer.state_dict().items() if name.endswith(".weight")}
    found = {}
    for name, weight in weights.items():
        if name.endswith("attn.to_q.weight"):
            parts = [weights[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            found[f"diffusion_model.{name.replace('attn.to_q', 'attention.qkv')}"] = torch.cat(parts)
        for ours, theirs in lora.LUMINA.items():
            if name.endswith(f".{ours}.weight"):
                found[f"diffusion_model.{name.replace(ours, theirs)}"] = weight
    return found


@pytest.fixture
def lumina(lora_of: Any, tmp_path: Path) -> tuple[Any, Any]:
    """Our pipeline with its LoRA, and the file as ComfyUI has it."""
    shutil.copy(lora_of("lumina2/lora"), tmp_path / "lumina.safetensors")
    return load("lumina2"), load("lumina2").with_lora(tmp_path / "lumina.safetensors")


def test_all_of_a_lumina_lora_reaches_the_weights_that_comfyui_has(native: Any, lumina: Any) -> None:
    base, adapted = lumina
    before = in_comfyui(base.base.pipe.transformer)
    adapted.base.adapter.set(adapted.lora, 0.8)
    after = in_comfyui(adapted.base.pipe.transformer)
    model = Model()
    model.model, model.weights = SimpleNamespace(names={}), before
    patched, coverage = run(native.Lora, model=model, like="lumina2", lora_name="lumina.safetensors", strength=0.8)
    assert json.loads(coverage)["applied"] == 62 and not json.loads(coverage)["unmatched"]
    ours = {name: weight.clone() for name, weight in before.items()}
    for place, (kind, (change,)) in patched.patches.items():
        assert kind == "diff"
        name, part = (place, None) if isinstance(place, str) else place
        rows = ours[name] if part is None else ours[name].narrow(*part)
        rows += change
    assert ours.keys() == after.keys() and all(torch.allclose(ours[name], after[name], atol=1e-6) for name in ours)
    assert not all(torch.equal(ours[name], before[name]) for name in ours)


def test_a_dora_is_merged_to_what_its_layer_gives_beside_it(golden_of: Any) -> None:
    """Rows are stretched to their magnitudes; our own adapter does that live."""
    dora, spec = golden_of("flex1/dora").path("lora"), MODELS["flex1"]
    pipeline = load("flex1").with_lora(dora)
    transformer = pipeline.base.pipe.transformer
    weights = {name: w.clone() for name, w in transformer.state_dict().items() if name.endswith(".weight")}
    names = {f"transformer.{name.removesuffix('.weight')}": name for name in weights}
    changes, coverage = lora.patches(spec, dora, {**names, "transformer.gone": "gone.weight"}, weights, 0.8)
    assert coverage.kinds == ("dora",)
    pipeline.base.adapter.set(pipeline.lora, 0.8, "live")
    for place, change in changes.items():
        module = transformer.get_submodule(str(place).removesuffix(".weight"))
        x = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            merged = torch.nn.functional.linear(x, weights[str(place)] + change, module.bias)
            assert torch.allclose(module(x), merged, atol=1e-4), place


def test_a_lora_of_another_model_is_refused(native: Any, lora_of: Any, tmp_path: Path) -> None:
    shutil.copy(lora_of("flux/lora"), tmp_path / "flux.safetensors")
    model = Model()
    model.model, model.weights = SimpleNamespace(names={}), in_comfyui(load("lumina2").base.pipe.transformer)
    with pytest.raises(LoraError):
        run(native.Lora, model=model, like="lumina2", lora_name="flux.safetensors", strength=1.0)


@pytest.mark.parametrize("sigma, expert", [(0.9, "high"), (0.875, "high"), (0.874, "low")])
def test_the_second_expert_takes_over_at_the_boundary(sigma: float, expert: str, native: Any) -> None:
    low = Model()
    low.clone = lambda: low  # type: ignore[method-assign]
    low.model = SimpleNamespace(apply_model=lambda latents, timestep, context: "low")
    (both,) = run(native.Experts, high=Model(), low=low, like="wan22_14b_t2v")
    assert both.beside == [low], "it is loaded beside the first"
    args = {"input": torch.zeros(1), "timestep": torch.tensor([sigma]), "c": {"context": None}}
    assert both.applies(lambda latents, timestep, context: "high", args) == expert


def test_the_further_channels_of_flex2_are_blank(native: Any) -> None:
    (blank,) = run(native.Blank, model=Model(), like="flex2")
    args = {"input": torch.ones(1, 16, 4, 4), "timestep": torch.ones(1), "c": {"c_concat": None, "context": 1}}
    seen = blank.applies(lambda latents, timestep, **more: more, args)
    assert seen["context"] == 1 and seen["c_concat"].shape == (1, 33, 4, 4)
    painted = seen["c_concat"].sum(dim=(0, 2, 3))
    assert painted.tolist() == [0.0] * 16 + [16.0] + [0.0] * 16, "all of the mask, nothing else"


def test_a_control_image_keeps_its_levels_through_the_node(native: Any) -> None:
    rows, columns = np.mgrid[:64, :64]
    levels = np.stack([rows * 4, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    image = torch.from_numpy(levels.astype(np.float32) / 255)[None]
    found, seen = run(native.Resize, image=image, like="wan21_i2v_14b", width=48, height=32)
    theirs, clips = resize.resized(MODELS["wan21_i2v_14b"], Image.fromarray(levels), 48, 32)
    assert np.array_equal((found[0].numpy() * 255).round(), np.asarray(theirs))
    assert np.array_equal((seen[0].numpy() * 255).round(), np.asarray(clips)) and seen.shape[1:3] == (224, 224)


def test_the_first_frame_is_a_sample_of_what_the_autoencoder_holds_possible(native: Any) -> None:
    mean, spread = torch.randn(2, 1, 16, 2, 4, 4)

    class Vae:
        def __init__(self) -> None:
            self.first_stage_model = SimpleNamespace(conv1=torch.nn.Identity())

        def encode(self, frames: Any) -> Any:
            assert frames.shape == (5, 32, 32, 3) and bool((frames[1:] == 0.5).all()) and bool((frames[0] == 1).all())
            return self.first_stage_model.conv1(torch.cat([mean, spread], dim=1)).chunk(2, dim=1)[0]

    vae, text = Vae(), [["words", {"kept": 1}]]
    positive, negative, latent = run(
        native.FirstFrame, positive=text, negative=text, vae=vae, start_image=torch.ones(1, 32, 32, 3), noise_seed=7,
        length=5,
    )  # fmt: skip
    shown = positive[0][1]
    assert torch.equal(shown["concat_latent_image"], sampling.posterior_sample(mean, spread, 7))
    assert shown["kept"] == 1 and negative[0][1].keys() == shown.keys() and text == [["words", {"kept": 1}]]
    assert shown["concat_mask"][:, :, 0].sum() == 0 and bool((shown["concat_mask"][:, :, 1:] == 1).all())
    assert latent["samples"].shape == mean.shape and not latent["samples"].any()
    assert not vae.first_stage_model.conv1._forward_hooks


def test_text_is_padded_to_the_trainers_length_and_cut_behind_the_words(native: Any) -> None:
    class Clip:
        """Knows each letter, and ends with 1."""

        def tokenize(self, text: str) -> dict[str, Any]:
            return {"t5xxl": [[*((ord(letter), 1.0) for letter in text), (1, 1.0)]]}

        def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
            ((words,),) = tokens.values()
            assert len(words) == 512
            return [[torch.tensor([[[float(number)] for number, _ in words]]), {"pooled_output": None}]]

    ((read, _),) = run(native.Text, clip=Clip(), like="chroma", text="(f)")[0]
    assert read.flatten().tolist() == [*map(ord, r"\(f\)"), 1, 0], "words, their end, one of the padding"
    ((read, _),) = run(native.Text, clip=Clip(), like="chroma", text="f" * 600)[0]
    assert read.flatten().tolist() == [ord("f")] * 511 + [1]


def test_the_padding_of_flux2_is_what_mistral_makes_of_it_without_looking(native: Any) -> None:
    """Against our pipeline, whose masked padding attends to nothing; words are what they are without it."""
    pipe = load("flux2").base.pipe
    encoder, tokenizer = pipe.text_encoder.model.language_model, pipe.tokenizer.tokenizer

    class Clip:
        cond_stage_model = SimpleNamespace(mistral3_24b=SimpleNamespace(transformer=SimpleNamespace(model=encoder)))

        def tokenize(self, text: str) -> dict[str, Any]:
            system = format_input([text], SYSTEM_MESSAGE)[0][0]["content"][0]["text"]
            whole = f"[SYSTEM_PROMPT]{system}[/SYSTEM_PROMPT][INST]{text}[/INST]"
            return {"mistral3_24b": [[(number, 1.0) for number in tokenizer(whole)["input_ids"]]]}

        def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
            ((words,),) = tokens.values()
            ids = torch.tensor([[number for number, _ in words]])
            with torch.no_grad():
                states = encoder(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            read = torch.cat([states[layer] for layer in (10, 20, 30)], dim=-1)
            return [[read, {"attention_mask": ids, "pooled_output": None}]]

    ((ours, more),) = run(native.Text, clip=Clip(), like="flux2", text="a (red) fox")[0]
    with torch.no_grad():
        theirs, _ = pipe.encode_prompt("a (red) fox", max_sequence_length=512, text_encoder_out_layers=(10, 20, 30))
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)
    assert "attention_mask" not in more, "the model reads all of it"
    assert not any(layer.self_attn.o_proj._forward_hooks for layer in encoder.layers)


def test_the_check_node_says_what_the_graph_around_it_does_otherwise(
    pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = pack.check.CheckWorkflow
    assert node.define_schema().hidden == ["PROMPT"], "ComfyUI gives it the whole graph"
    graph = graphs.build(MODELS["flux"], resolve(MODELS["flux"], Request("a fox")))
    monkeypatch.setattr(node, "hidden", SimpleNamespace(prompt=graph))
    assert run(node, like="flux") == ("nothing that the trainer does otherwise for flux",)
    (name,) = [name for name, inner in graph.items() if inner["class_type"] == "KSamplerSelect"]
    graph[name]["inputs"]["sampler_name"] = "heun"
    (said,) = run(node, like="flux")
    assert said == f"{name} KSamplerSelect: sampler heun: the trainer steps with Euler\n    remedy: sampler euler"
    assert node.fingerprint_inputs(like="flux") != node.fingerprint_inputs(like="flux"), "it is asked each time"
