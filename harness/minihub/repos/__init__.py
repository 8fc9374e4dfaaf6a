"""Every miniature repository, and which of them each model id loads."""

from harness.minihub.repo import Repo
from harness.minihub.repos import flux, sd, wan, wan22, zimage

MODELS: dict[str, tuple[Repo, ...]] = {
    "sd15": (sd.SD15,),
    "sdxl": (sd.SDXL,),
    "flux": (flux.FLUX_DEV,),
    "zimage_turbo": (zimage.ZIMAGE_TURBO, zimage.TURBO_ADAPTER),
    "wan21_1b": (wan.WAN21_1B, wan.UMT5_XXL),
    "wan21_14b": (wan.WAN21_14B, wan.UMT5_XXL),
    "wan21_i2v_14b480p": (wan.WAN21_I2V_480P, wan.UMT5_XXL),
    "wan21_i2v_14b": (wan.WAN21_I2V_720P, wan.UMT5_XXL),
    "wan22_14b_t2v": (wan22.WAN22_14B_T2V, wan.UMT5_XXL, wan22.WAN21_VAE_ALONE),
    "wan22_14b_i2v": (wan22.WAN22_14B_I2V, wan.UMT5_XXL, wan22.WAN21_VAE_ALONE),
    "wan22_5b": (wan22.WAN22_5B, wan.UMT5_XXL),
}
REPOS: dict[str, Repo] = {repo.id: repo for repos in MODELS.values() for repo in repos}
