"""LoRA files of other trainers: one table of how they spell keys, and one of what they hold that is not read.

What maps exactly is read: prefixes, adapter names, and the names that a network has in another codebase. The tables of
names follow kohya's `lora_flux.py` and Diffusers' `lora_conversion_utils.py`; here they are made from the modules that
the model really has. Everything else is named, with the program that converts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

Names = Mapping[str, tuple[int, ...]]
"""Module path of Diffusers' network -> its weight's shape."""
Modules = tuple[str, ...]
"""The modules whose matrices one (perhaps fused) matrix of a file stacks, in this order."""


class Scheme(NamedTuple):
    """How some program spells the modules of a network."""

    program: str
    prefix: str
    separator: str
    """Between the parts of a path: "." or "_"."""
    names: Callable[[Names], Iterator[tuple[str, Modules]]]
    """Yields (the program's path of a module, ours) for the modules of a network."""
    families: tuple[str, ...] = ()
    """Where it applies; empty: everywhere."""


def _own(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As Diffusers calls them."""
    return ((name, (name,)) for name in modules)


FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_OTHER = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
"""Black Forest Labs' names of FLUX.1's modules -> Diffusers'. (Its final_layer.adaLN_modulation.1 has shift and scale
in the other order, so it is none of Diffusers' matrices.)"""


def _flux(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As Black Forest Labs call them, with q, k, v (and the MLP) in one matrix."""
    blocks = {(kind, number) for name in modules if (place := re.match(r"(single_)?transformer_blocks\.(\d+)\.", name))
              for kind, number in [(place[1] or "", place[2])]}  # fmt: skip
    for kind, number in sorted(blocks):
        theirs, ours = ("single_blocks", FLUX_SINGLE) if kind else ("double_blocks", FLUX_DOUBLE)
        for name, parts in ours.items():
            yield f"{theirs}.{number}.{name}", tuple(f"{kind}transformer_blocks.{number}.{part}" for part in parts)
    yield from FLUX_OTHER.items()


LDM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
LDM_OTHER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}


def _ldm(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As the original Stable Diffusion calls them: blocks are counted through, whatever they hold."""
    attended = {found[0] for name in modules if (found := re.match(r"up_blocks\.\d+\.attentions", name))}
    per_block = 1 + max((int(n[1]) for name in modules if (n := re.match(r"down_blocks\.\d+\.resnets\.(\d+)", name))),
                        default=1)  # fmt: skip

    def place(name: str) -> str:
        if name in LDM_OTHER:
            return LDM_OTHER[name]
        found = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)"
                             r"\.(\d+)\.(.+)", name)  # fmt: skip
        if found is None:
            return ""
        side, kind, rest = found[1], found[3], found[5]
        block, inner = int(found[2] or 0), int(found[4])
        rest = LDM_RESNET.get(rest, "") if kind == "resnets" else rest
        if side == "mid":
            return f"middle_block.{2 * inner if kind == 'resnets' else 1}.{rest}" if rest else ""
        if kind == "downsamplers":
            return f"input_blocks.{(per_block + 1) * (block + 1)}.0.op"
        if kind == "upsamplers":
            last = (per_block + 1) * block + per_block
            return f"output_blocks.{last}.{2 if f'up_blocks.{block}.attentions' in attended else 1}.{rest}"
        number = (per_block + 1) * block + inner + (1 if side == "down" else 0)
        where = "input_blocks" if side == "down" else "output_blocks"
        return f"{where}.{number}.{0 if kind == 'resnets' else 1}.{rest}" if rest else ""

    return ((theirs, (name,)) for name in modules if (theirs := place(name)))


SD, FLUX = ("sd",), ("flux", "flux_kontext", "flex2")
SCHEMES = (
    Scheme("kohya", "lora_unet_", "_", _own, SD),
    Scheme("kohya (names of the original network)", "lora_unet_", "_", _ldm, SD),
    Scheme("the original network", "model.diffusion_model.", ".", _ldm, SD),
    Scheme("ComfyUI", "diffusion_model.", ".", _ldm, SD),
    Scheme("Diffusers", "unet.", ".", _own, SD),
    Scheme("kohya", "lora_unet_", "_", _flux, FLUX),
    Scheme("ComfyUI", "diffusion_model.", ".", _flux, FLUX),
    Scheme("the original network", "", ".", _flux, FLUX),
    Scheme("musubi-tuner", "lora_unet_", "_", _own),
    Scheme("OneTrainer", "lora_transformer_", "_", _own),
    Scheme("OneTrainer", "transformer.", ".", _own),
    Scheme("ComfyUI", "diffusion_model.", ".", _own),
    Scheme("Diffusers without a prefix", "", ".", _own),
)
"""In this order: the first that has a name takes it. A prefix of PEFT's is taken off before."""
WRAPPERS = ("base_model.model.", "base_model.", "model.model.")
"""What PEFT puts before the names of the network that it wrapped."""

PAIR = re.compile(r"\.(?:lora_(?P<one>A|B|down|up)(?:\.(?P<adapter>[^.]+))?|lora\.(?P<old>down|up))\.weight")
"""The halves of a pair: with the name of PEFT's adapter, or as Diffusers wrote them once."""
HALVES = {"A": "down", "B": "up", "down": "down", "up": "up"}

NOT_READ: tuple[tuple[str, str], ...] = (
    (r"\.dora_scale$", "a DoRA of another trainer (dora_scale: LyCORIS, kohya, OneTrainer), which is normalised "
     "otherwise than ai-toolkit's"),
    (r"\.lora_magnitude_vector(\.[^.]+)?(\.weight)?$", "a DoRA of PEFT (lora_magnitude_vector), which is normalised "
     "otherwise than ai-toolkit's"),
    (r"\.lora_(B|up)(\.[^.]+)?\.bias$", "a LoRA of PEFT with a bias (lora_bias)"),
    (r"\.lora_mid\.weight$", "a LoCon in Tucker form (lora_mid)"),
    (r"\.lokr_t2$", "a LoKr in Tucker form (lokr_t2)"),
    (r"\.hada_", "a LoHa of LyCORIS (hada)"),
    (r"\.(oft_|boft|oft_blocks)", "an OFT (of LyCORIS or kohya)"),
    (r"\.(diff|diff_b|w_norm|b_norm|set_weight)$", "whole weights (diff), as ComfyUI extracts them"),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA of LyCORIS"),
    (r"\.scalar$", "a LyCORIS with a trained scalar"),
    (r"\.on_input$", "an IA3 of LyCORIS"),
)  # fmt: skip
"""Pattern of a key -> what the file is. A module that has one is not read at all: the rest is half of its change."""
TEXT_ENCODER = re.compile(r"^(lora_te\d*_|text_encoders?(_\d)?\.|lora_prior_te_|te\d?_|cond_stage_model\.)")
EMBEDDING = re.compile(r"^(bundle_emb|emb_params|string_to_param)")


class Part(NamedTuple):
    """A key taken apart."""

    name: str
    part: str
    """As in `lora.PARTS`; "" if it is not read."""
    unread: str = ""
    """What the file is, where that is why it is not read."""


def split(key: str, parts: Mapping[str, str]) -> Part:
    """ "a.b.lora_A.default.weight" -> ("a.b", "down"). `parts`: suffixes in the trainer's own spelling -> part."""
    for suffix, part in parts.items():
        if key.endswith("." + suffix):
            return Part(key[: -len(suffix) - 1], part)
    pair = PAIR.search(key)
    if pair is not None and pair.end() == len(key):
        return Part(key[: pair.start()], HALVES[pair["one"] or pair["old"]])
    for pattern, what in NOT_READ:
        if found := re.search(pattern, key):
            return Part(key[: found.start()], "", what)
    return Part(key, "")


def unwrapped(name: str) -> str:
    """Without what PEFT puts before names."""
    return next((name[len(prefix) :] for prefix in WRAPPERS if name.startswith(prefix)), name)


def tables(family: str, modules: Names) -> list[tuple[Scheme, dict[str, Modules]]]:
    """The schemes of a family, each with its names of these modules (without the prefix) -> ours."""
    found = []
    for scheme in SCHEMES:
        if not scheme.families or family in scheme.families:
            names = ((name.replace(".", scheme.separator), ours) for name, ours in scheme.names(modules))
            found.append((scheme, {name: ours for name, ours in names if all(one in modules for one in ours)}))
    return found


def looked_up(name: str, of: list[tuple[Scheme, dict[str, Modules]]]) -> tuple[str, Modules]:
    """(the program, our modules) of a name in a file; ("", ()) if no scheme has it."""
    for scheme, names in of:
        if name.startswith(scheme.prefix) and (ours := names.get(name[len(scheme.prefix) :])):
            return scheme.program, ours
    return "", ()


CONVERTERS = {
    "lora_unet_": "kohya's sd-scripts or musubi-tuner, which have converters: networks/convert_flux_lora.py and "
    "convert_lora.py",
    "base_model.model.": "PEFT",
    "lora_transformer_": "OneTrainer",
    "diffusion_model.": "ComfyUI",
    "transformer.": "Diffusers",
    "unet.": "Diffusers",
    "model.diffusion_model.": "the original network (not a LoRA but a checkpoint, if its keys end in weight and bias)",
}
"""Prefix of the keys of a file that no scheme reads -> whose format that looks like."""


def looks_like(keys: list[str]) -> str:
    """Whose format unread keys look like, in words; "" if nobody's."""
    for prefix, whose in CONVERTERS.items():
        if sum(key.startswith(prefix) for key in keys) > len(keys) / 2:
            return whose
    return ""
