"""Synthetic models of the *real* size: a Hugging Face cache with the published configs and random weights.

    python -m lora_drift.harness.minihub.full --model flux --home DIR     # in the trainer's environment

Pictures of them mean nothing, but trainer and pipelines load them as they load the real ones, so it shows whether they
still agree at full width and depth, how long they take and what memory. The repositories are those of the mini hub with
other sizes; what no model of the table loads (FLUX.1's CLIP in Flex.1's repository, say) is left out.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import numpy as np

from lora_drift.harness.minihub import layout, weights
from lora_drift.harness.minihub.factory import MiniHubError, repo_folder
from lora_drift.harness.minihub.repo import Config, Repo, Weights, to_json
from lora_drift.harness.minihub.repos import MODELS, REPOS, flux
from lora_drift.harness.minihub.repos.encoders import DECODER_RULES
from lora_drift.harness.minihub.repos.flux2_files import Autoencoder, Transformer
from lora_drift.harness.minihub.weights import Rule
from lora_drift.pipelines.files import whole

MARK = "full.json"
"""File in the home of such a hub, by which it is told from a mini hub."""
DTYPE = "bfloat16"

# ---- the published sizes, as changes of the miniatures' configs --------------------------------------------------
# Source: config.json of each repository. Those of the denoisers and of Wan's and Qwen's autoencoders are also the
# defaults of Diffusers' classes, or stand in its scripts/convert_{wan,flux2,sdxl...}; those of chroma and klein in the
# trainer (chroma/src/model.py chroma_params, flux2/src/model.py Klein4BParams, src/autoencoder.py AutoEncoderParams).
# The tokenizers stay the miniatures', whose ids lie below the real vocabularies.

CLIP_L: Config = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
                  "projection_dim": 768, "vocab_size": 49408}  # fmt: skip
CLIP_G: Config = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
                  "projection_dim": 1280, "vocab_size": 49408}  # fmt: skip
T5_XXL: Config = {"d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_decoder_layers": 24, "num_heads": 64,
                  "num_layers": 24, "vocab_size": 32128}  # fmt: skip
UMT5_XXL: Config = {**T5_XXL, "vocab_size": 256384}
QWEN3_4B: Config = {"head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728, "max_window_layers": 36,
                    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
                    "vocab_size": 151936}  # fmt: skip
QWEN25_VL_7B: Config = {
    "text_config": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
                    "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064,
                    "rope_scaling": {"mrope_section": [16, 24, 24]}},
    "vision_config": {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_size": 1280,
                      "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
}  # fmt: skip
VAE_KL: Config = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
VAE_WAN: Config = {"base_dim": 96, "num_res_blocks": 2}
VAE_WAN22: Config = {"base_dim": 160, "decoder_base_dim": 256, "num_res_blocks": 2}
UNET_XL: Config = {"addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
                   "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "layers_per_block": 2,
                   "norm_num_groups": 32, "projection_class_embeddings_input_dim": 2816,
                   "transformer_layers_per_block": [1, 2, 10]}  # fmt: skip
FLUX: Config = {"attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 4096,
                "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38,
                "pooled_projection_dim": 768}  # fmt: skip
ZIMAGE: Config = {"axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "dim": 3840,
                  "n_heads": 30, "n_kv_heads": 30, "n_layers": 30, "n_refiner_layers": 2}  # fmt: skip
QWEN_IMAGE: Config = {"attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 3584,
                      "num_attention_heads": 24, "num_layers": 60}  # fmt: skip
WAN_1B: Config = {"attention_head_dim": 128, "ffn_dim": 8960, "freq_dim": 256, "num_attention_heads": 12,
                  "num_layers": 30, "text_dim": 4096}  # fmt: skip
WAN_5B: Config = {**WAN_1B, "ffn_dim": 14336, "num_attention_heads": 24}
CHROMA = {"approximator_hidden_size": 5120, "axes_dim": [16, 56, 56], "context_in_dim": 4096, "hidden_size": 3072,
          "num_heads": 24}  # fmt: skip
KLEIN_4B = Transformer(hidden=3072, heads=24, depth=5, single=20, context=7680, guidance=False)
FLUX2_VAE = Autoencoder(channels=128, multipliers=(1, 2, 4, 4), blocks=2)

COMPONENTS: Mapping[str, Mapping[str, Config]] = {
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "unet": UNET_XL, "vae": VAE_KL,
    },
    "black-forest-labs/FLUX.1-dev": {
        "text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "transformer": FLUX, "vae": VAE_KL,
    },
    "ostris/Flex.1-alpha": {"text_encoder_2": T5_XXL, "vae": VAE_KL},
    "Tongyi-MAI/Z-Image-Turbo": {"text_encoder": QWEN3_4B, "transformer": ZIMAGE, "vae": VAE_KL},
    "Qwen/Qwen3-4B": {"": QWEN3_4B},
    "Qwen/Qwen-Image": {"text_encoder": QWEN25_VL_7B, "transformer": QWEN_IMAGE, "vae": VAE_WAN},
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {"text_encoder": UMT5_XXL, "transformer": WAN_1B, "vae": VAE_WAN},
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {"text_encoder": UMT5_XXL, "transformer": WAN_5B, "vae": VAE_WAN22},
    "ai-toolkit/umt5_xxl_encoder": {"text_encoder": UMT5_XXL},
}  # fmt: skip
"""Hub id -> folder -> what is larger than in the miniature."""
FILES: Mapping[str, Mapping[str, Mapping[str, Sequence[int]]]] = {
    "lodestones/Chroma1-Base": {"Chroma1-Base.safetensors": flux.chroma_shapes(CHROMA, double=19, single=38)},
    "black-forest-labs/FLUX.2-klein-base-4B": {"flux-2-klein-base-4b.safetensors": KLEIN_4B.shapes()},
    "ai-toolkit/flux2_vae": {"ae.safetensors": FLUX2_VAE.shapes()},
}
"""Hub id -> loose file -> its tensors."""
FULL = ("sdxl", "flux", "zimage_turbo", "qwen_image", "flux2_klein_4b", "wan21_1b", "wan22_5b", "chroma")
"""Models of which all that is loaded stands above."""

RULES: tuple[Rule, ...] = (
    *DECODER_RULES,
    # T5 does not divide by the square root of a head's width.
    (r"SelfAttention\.q\.weight$", 1 / 8),
    # XL reads its encoders' last hidden layer but one, without the final norm: about 8 in size after 32 layers.
    (r"attn2\.to_k\.weight$", 1 / 8),
)
"""The miniatures sharpen attention, so that every change shows; deep nets would make noise of it."""


@dataclass(frozen=True)
class Part:
    """One weight file."""

    repo: str
    path: str
    key: str
    """Equal files have the same one."""
    shapes: Callable[[], Mapping[str, Sequence[int]]]


def resized(repo: Repo) -> Repo:
    """The repository with the components that the table has, in their real size."""
    sizes = COMPONENTS.get(repo.id, {})
    found = [replace(w, config=_merged(w.config, sizes[w.folder])) for w in repo.weights if w.folder in sizes]
    # One file each: Diffusers asks the network for the shard list of what it loads by hub id (repo.Weights.shards).
    return replace(repo, weights=[replace(w, dtype=DTYPE, shards=1, rules=(), values=None) for w in found], tensors=())


def _merged(config: Config, changes: Config) -> dict[str, Any]:
    nested = {k: _merged(config[k], v) for k, v in changes.items() if isinstance(v, Mapping)}
    return {**config, **changes, **nested}


def parts(repo: Repo) -> Iterator[Part]:
    for w in resized(repo).weights:
        path = f"{w.folder}/{w.stem}.safetensors".lstrip("/")
        yield Part(repo.id, path, layout.config_key(w), partial(_shapes, w))
    for path, loose in FILES.get(repo.id, {}).items():
        key = sha256(to_json({n: list(s) for n, s in loose.items()}).encode()).hexdigest()[:8]
        yield Part(repo.id, path, f"{Path(path).stem}-{key}", partial(dict, loose))


def _shapes(w: Weights) -> dict[str, list[int]]:
    return {name: [int(n) for n in shape.split("x") if n] for name, shape in layout.read_from_class(w).items()}


def repositories(models: Collection[str]) -> list[Repo]:
    """What the trainer and our pipelines load of these models.

    Raises:
        MiniHubError: a model is not in the table.
    """
    unknown = [model for model in models if model not in FULL]
    if unknown:
        raise MiniHubError(f"no full-size config of {', '.join(unknown)} (there are {', '.join(FULL)})")
    ids = dict.fromkeys(repo.id for model in models for repo in MODELS[model])
    return [REPOS[i] for i in ids if i in COMPONENTS or i in FILES]


def build(home: Path, models: Collection[str], say: Callable[[str], None] = print, *, prune: bool = False) -> None:
    """Make `home` a Hugging Face cache (`HF_HOME`) with these models; what is there already stays.

    A weight file is drawn once and linked wherever it belongs. The bytes depend on the kind of device that draws them.

    Args:
        prune: remove everything that none of `models` loads first.

    Raises:
        MiniHubError: an unknown model, or a transformers release that has other tensor names.
    """
    repos = repositories(models)
    _check_transformers()
    wanted = [part for repo in repos for part in parts(repo)]
    if prune:
        _prune(home, repos, {part.key for part in wanted})
    (home / "drawn").mkdir(parents=True, exist_ok=True)
    (home / MARK).write_text(to_json({"models": sorted(models)}))
    for repo in repos:
        snapshot = _skeleton(home, repo)
        for part in (p for p in wanted if p.repo == repo.id):
            drawn = home / "drawn" / f"{part.key}.safetensors"
            if not drawn.is_file():
                _draw(drawn, part, say)
            (snapshot / part.path).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / part.path).unlink(missing_ok=True)
            os.link(drawn, snapshot / part.path)


def _check_transformers() -> None:
    from importlib.metadata import version

    found = version("transformers")
    if not found.startswith("4."):
        raise MiniHubError(
            f"transformers {found} is installed: checkpoints have the tensor names of 4.57, so build full-size models "
            "in the trainer's environment (docs/goldens.md, Record)"
        )


def _prune(home: Path, repos: Sequence[Repo], keys: Collection[str]) -> None:
    kept = {repo_folder(home, repo.id) for repo in repos}
    for folder in (home / "hub").glob("models--*"):
        if folder not in kept:
            shutil.rmtree(folder)
    for file in (home / "drawn").glob("*.safetensors"):
        if file.stem not in keys:
            file.unlink()


def _skeleton(home: Path, repo: Repo) -> Path:
    """Everything of the repository but weights; returns its snapshot folder."""
    full = resized(repo)
    configs = {f"{w.folder}/config.json".lstrip("/"): w.config_json() for w in full.weights}
    texts = {**full.files, **configs}
    revision = sha1(to_json(texts).encode()).hexdigest()
    folder = repo_folder(home, repo.id)
    snapshot = folder / "snapshots" / revision
    files = {path: text.encode() for path, text in texts.items()} | dict(full.binaries)
    for path, content in files.items():
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).write_bytes(content)
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    return snapshot


def _draw(target: Path, part: Part, say: Callable[[str], None]) -> None:
    """Write one safetensors file. Every tensor has a generator of its own, so they can be drawn side by side."""
    started = time.perf_counter()
    shapes = part.shapes()
    sizes = {name: 2 * int(np.prod(shape, dtype=np.int64)) for name, shape in sorted(shapes.items())}
    head, places = weights.head({name: ("BF16", shapes[name], size) for name, size in sizes.items()})
    total = sum(sizes.values())
    with whole(target) as unfinished, unfinished.open("wb") as file:
        file.write(head)
        file.flush()
        file.truncate(len(head) + total)

        def write(name: str) -> None:
            data, at = memoryview(tensor(part.key, name, shapes[name])), places[name]
            while data:  # a call writes 2 GiB at most
                written = os.pwrite(file.fileno(), data, at)
                data, at = data[written:], at + written

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(write, sizes))
    seconds = time.perf_counter() - started
    say(f"{part.repo}/{part.path}: {total / 2e9:.3f} billion parameters in {seconds:.1f} s")


def tensor(key: str, name: str, shape: Sequence[int]) -> Any:
    """The bytes of one parameter in bfloat16 (uint8 array), at the miniatures' scale (`weights.scaled`)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    seed = int.from_bytes(sha256(f"{key}\x00{name}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device).manual_seed(seed)
    low, high = _range(name, shape)
    drawn = torch.empty(tuple(shape), device=device).uniform_(low, high, generator=generator)
    return drawn.to(torch.bfloat16).reshape(-1).view(torch.uint8).cpu().numpy()


def _range(name: str, shape: Sequence[int]) -> tuple[float, float]:
    if name.endswith(("running_var", ".scale")):  # about 1, though their names do not say "weight"
        name += ".weight"
    low, high = weights.scaled(np.array([-1, 1], np.float32), name, shape, RULES)
    return float(low), float(high)


def main() -> None:
    """`lora-drift minihub full` for the trainer's environment, which lacks what the command line is made of."""
    parser = argparse.ArgumentParser(
        prog="python -m lora_drift.harness.minihub.full", description="Build full-size models with random weights."
    )
    parser.add_argument("--model", action="append", required=True, help=f"repeatable; one of {', '.join(FULL)}")
    parser.add_argument("--home", type=Path, required=True, help="folder to build it in, to be used as HF_HOME")
    parser.add_argument("--prune", action="store_true", help="remove the weights of other models from there first")
    args = parser.parse_args()
    try:
        build(args.home, args.model, partial(print, flush=True), prune=args.prune)
    except MiniHubError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
