"""Every miniature repository, and which of them each model id loads."""

from harness.minihub.repo import Repo
from harness.minihub.repos import flux, flux2, sd, wan, zimage

MODELS: dict[str, tuple[Repo, ...]] = {
    "sd15": (sd.SD15,),
    "sdxl": (sd.SDXL,),
    "flux": (flux.FLUX_DEV,),
    "flux2_klein_4b": (flux2.KLEIN_4B, flux2.QWEN3_4B, flux2.FLUX2_VAE),
    "flux2_klein_9b": (flux2.KLEIN_9B, flux2.QWEN3_8B, flux2.FLUX2_VAE),
    "flux2": (flux2.FLUX2_DEV, flux2.MISTRAL),
    "flux2_diffusers": (flux2.FLUX2_DEV, flux2.MISTRAL),
    "zimage_turbo": (zimage.ZIMAGE_TURBO, zimage.TURBO_ADAPTER),
    "wan21_1b": (wan.WAN21_1B, wan.UMT5_XXL),
}
REPOS: dict[str, Repo] = {repo.id: repo for repos in MODELS.values() for repo in repos}
