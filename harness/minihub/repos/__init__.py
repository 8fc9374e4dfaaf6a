"""Every miniature repository, and which of them each model id loads."""

from lora_drift.harness.minihub.repo import Repo
from lora_drift.harness.minihub.repos import (
    flux,
    flux2,
    hidream,
    ltx2,
    lumina2,
    omnigen2,
    quantized,
    qwen,
    sd,
    single_file,
    wan,
    wan22,
    zimage,
)

MODELS: dict[str, tuple[Repo, ...]] = {
    "sd15": (sd.SD15,),
    "sdxl": (sd.SDXL,),
    "flux": (flux.FLUX_DEV,),
    "hidream": (hidream.HIDREAM_I1, hidream.LLAMA),
    "hidream_e1": (hidream.HIDREAM_E1, hidream.LLAMA),
    "flex1": (flux.FLEX1,),
    "flux_kontext": (flux.KONTEXT,),
    "chroma": (flux.CHROMA_BASE, flux.FLEX1),
    "flex2": (flux.FLEX2,),
    "flux2_klein_4b": (flux2.KLEIN_4B, flux2.QWEN3_4B, flux2.FLUX2_VAE),
    "flux2_klein_9b": (flux2.KLEIN_9B, flux2.QWEN3_8B, flux2.FLUX2_VAE),
    "flux2": (flux2.FLUX2_DEV, flux2.MISTRAL),
    "flux2_diffusers": (flux2.FLUX2_DEV, flux2.MISTRAL),
    "qwen_image": (qwen.QWEN_IMAGE,),
    "qwen_image_2512": (qwen.QWEN_IMAGE_2512,),
    "qwen_image_edit": (qwen.QWEN_IMAGE_EDIT,),
    "qwen_image_edit_plus": (qwen.QWEN_IMAGE_EDIT_2509,),
    "qwen_image_edit_plus_2511": (qwen.QWEN_IMAGE_EDIT_2511,),
    "zimage_turbo": (zimage.ZIMAGE_TURBO, zimage.TURBO_ADAPTER),
    "zimage": (zimage.ZIMAGE,),
    "zimage_deturbo": (zimage.ZIMAGE_DETURBO, zimage.ZIMAGE_TURBO),
    "lumina2": (lumina2.LUMINA2,),
    "omnigen2": (omnigen2.OMNIGEN2,),
    "wan21_1b": (wan.WAN21_1B, wan.UMT5_XXL),
    "ltx2": (ltx2.LTX2,),
    "ltx2.3": (ltx2.LTX23, ltx2.GEMMA3_12B),
    "wan21_14b": (wan.WAN21_14B, wan.UMT5_XXL),
    "wan21_i2v_14b480p": (wan.WAN21_I2V_480P, wan.UMT5_XXL),
    "wan21_i2v_14b": (wan.WAN21_I2V_720P, wan.UMT5_XXL),
    "wan22_14b_t2v": (wan22.WAN22_14B_T2V, wan.UMT5_XXL, wan22.WAN21_VAE_ALONE),
    "wan22_14b_i2v": (wan22.WAN22_14B_I2V, wan.UMT5_XXL, wan22.WAN21_VAE_ALONE),
    "wan22_5b": (wan22.WAN22_5B, wan.UMT5_XXL),
}
EXTRAS = (quantized.RECOVERY, quantized.WAN22_14B_T2V_WIDE, single_file.SD15_FILE, single_file.SAFETY_CHECKER)
"""Loaded by the cases that name them."""
REPOS: dict[str, Repo] = {repo.id: repo for repos in (*MODELS.values(), EXTRAS) for repo in repos}
