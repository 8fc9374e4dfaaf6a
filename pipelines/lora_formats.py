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


FLUX2_DOUBLE = {
    **{name: FLUX_DOUBLE[name] for name in ("img_attn.qkv", "txt_attn.qkv", "img_attn.proj", "txt_attn.proj")},
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
FLUX2_SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
XLABS_DOUBLE = {
    "processor.qkv_lora1": FLUX_DOUBLE["img_attn.qkv"],
    "processor.qkv_lora2": FLUX_DOUBLE["txt_attn.qkv"],
    "processor.proj_lora1": FLUX_DOUBLE["img_attn.proj"],
    "processor.proj_lora2": FLUX_DOUBLE["txt_attn.proj"],
}
XLABS_SINGLE = {"processor.qkv_lora": FLUX_SINGLE["linear1"][:3], "processor.proj_lora": FLUX_SINGLE["linear2"]}


def _flux2(modules: Names) -> Iterator[tuple[str, Modules]]:
    """The same of FLUX.2."""
    return _flux_blocks(modules, FLUX2_DOUBLE, FLUX2_SINGLE)


def _xlabs(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As XLabs call FLUX.1's, after the processors that they put in the place of Diffusers'."""
    return _flux_blocks(modules, XLABS_DOUBLE, XLABS_SINGLE)


def _flux(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As Black Forest Labs call them, with q, k, v (and the MLP) in one matrix."""
    yield from _flux_blocks(modules, FLUX_DOUBLE, FLUX_SINGLE)
    yield from FLUX_OTHER.items()


def _flux_blocks(
    modules: Names, double: Mapping[str, Modules], single: Mapping[str, Modules]
) -> Iterator[tuple[str, Modules]]:
    blocks = {(kind, number) for name in modules if (place := re.match(r"(single_)?transformer_blocks\.(\d+)\.", name))
              for kind, number in [(place[1] or "", place[2])]}  # fmt: skip
    for kind, number in sorted(blocks):
        theirs, ours = ("single_blocks", single) if kind else ("double_blocks", double)
        for name, parts in ours.items():
            yield f"{theirs}.{number}.{name}", tuple(f"{kind}transformer_blocks.{number}.{part}" for part in parts)


WAN = {
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    ".to_out.0": ".o",
    ".to_q": ".q",
    ".to_k": ".k",
    ".to_v": ".v",
    ".add_k_proj": ".k_img",
    ".add_v_proj": ".v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
}
"""Diffusers' parts of the names of Wan's modules -> the original's."""
LUMINA2 = {
    "attn.to_out.0": "attention.out",
    "feed_forward.linear_": "feed_forward.w",
    "norm1.linear": "adaLN_modulation.1",
}


def _wan(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As Wan's own code calls them."""
    for name in modules:
        theirs = "head.head" if name == "proj_out" else name
        for ours, original in WAN.items():
            theirs = theirs.replace(ours, original)
        yield theirs, (name,)


def _zimage(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As ComfyUI calls Z-Image's, with q, k, v in one matrix."""
    yield from _qkv(modules, "attention.", "attention.qkv")
    for name in modules:
        yield name.replace("attention.to_out.0", "attention.out"), (name,)


def _lumina2(modules: Names) -> Iterator[tuple[str, Modules]]:
    """As Lumina's own code calls them, with q, k, v in one matrix."""
    yield from _qkv(modules, "attn.", "attention.qkv")
    for name in modules:
        theirs = name
        for ours, original in LUMINA2.items():
            theirs = theirs.replace(ours, original)
        yield theirs, (name,)


def _qkv(modules: Names, attention: str, fused: str) -> Iterator[tuple[str, Modules]]:
    for name in modules:
        if name.endswith(f".{attention}to_q"):
            block = name.removesuffix(f"{attention}to_q")
            yield block + fused, tuple(f"{block}{attention}to_{part}" for part in "qkv")


LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
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
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_names(modules: Names) -> Iterator[tuple[str, Modules]]:
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


SD, FLUX = ("sd",), ("flux", "flux_kontext", "flex2", "chroma")
ORIGINAL = ((_flux, FLUX), (_flux2, ("flux2",)), (_wan, ("wan",)), (_zimage, ("zimage",)), (_lumina2, ("lumina2",)))
"""Names of the original networks, and the families that have them."""
SCHEMES = (
    Scheme("kohya", "lora_unet_", "_", _own, SD),
    Scheme("kohya (names of the original network)", "lora_unet_", "_", ldm_names, SD),
    Scheme("the original network", "model.diffusion_model.", ".", ldm_names, SD),
    Scheme("ComfyUI", "diffusion_model.", ".", ldm_names, SD),
    Scheme("Diffusers", "unet.", ".", _own, SD),
    *(
        Scheme(program, prefix, separator, names, families)
        for names, families in ORIGINAL
        for program, prefix, separator in (
            ("kohya or musubi-tuner", "lora_unet_", "_"),
            ("ComfyUI", "diffusion_model.", "."),
            ("the original network", "", "."),
        )
    ),
    Scheme("XLabs", "", ".", _xlabs, FLUX),
    Scheme("XLabs", "diffusion_model.", ".", _xlabs, FLUX),
    Scheme("musubi-tuner", "lora_unet_", "_", _own),
    Scheme("OneTrainer", "lora_transformer_", "_", _own),
    Scheme("OneTrainer", "transformer.", ".", _own),
    Scheme("ComfyUI", "diffusion_model.", ".", _own),
    Scheme("Diffusers without a prefix", "", ".", _own),
)
"""In this order: the first that has a name takes it. A prefix of PEFT's is taken off before."""
WRAPPERS = ("base_model.model.", "base_model.", "model.model.")
"""What PEFT puts before the names of the network that it wrapped."""

PAIR = re.compile(
    r"(?:\.lora_(?P<one>A|B|down|up)(?:\.(?P<adapter>[^.]+))?|\.lora(?:_linear_layer)?\.(?P<old>down|up)"
    r"|(?P<processor>\.processor\.to_(?:q|k|v|out)_lora|(?<=_lora)|(?<=_lora[12]))\.(?P<oldest>down|up))\.weight"
)
"""The halves of a pair: with the name of PEFT's adapter; as Diffusers wrote them once, first in its attention
processors; as XLabs do."""
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
    (r"\.(diff|diff_[bm]|w_norm|b_norm|set_weight)$", "whole weights (diff), as ComfyUI extracts them"),
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
        layer = (pair["processor"] or "").removeprefix(".processor").removesuffix("_lora")
        name = key[: pair.start()] + (layer + ".0" if layer == ".to_out" else layer)
        return Part(name, HALVES[pair["one"] or pair["old"] or pair["oldest"]])
    for pattern, what in NOT_READ:
        if found := re.search(pattern, key):
            return Part(key[: found.start()], "", what)
    return Part(key, "")


def unwrapped(name: str) -> str:
    """Without what PEFT puts before names."""
    return next((name[len(prefix) :] for prefix in WRAPPERS if name.startswith(prefix)), name)


ENCODERS = (("lora_te0_",), ("lora_te1_",), ("text_encoder.",), ("text_encoder.", "text_encoder_2."))
"""How programs other than the trainer number a model's text encoders: kohya and its descendants, and Diffusers. A row
is for models with as many."""


def of_encoder(prefix: str, modules: Names) -> Iterator[tuple[str, str]]:
    """(name in a file under this prefix, module) for the modules of a text encoder.

    Files have the names of transformers 4, in which every module of CLIP is below `text_model`.
    """
    for module in modules:
        whole = module if module.startswith(("text_model.", "text_projection")) else f"text_model.{module}"
        yield prefix + whole.replace(".", prefix[-1]), module


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
        rest = name[len(scheme.prefix) :] if name.startswith(scheme.prefix) else ""
        # Some tools put back the dots of a part of the name only: lora_unet_blocks_22.self_attn.k
        if ours := names.get(rest.replace(".", "_") if scheme.separator == "_" else rest):
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
