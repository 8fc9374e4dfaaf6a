"""Every miniature repository, and which of them each model id loads."""

from harness.minihub.repo import Repo
from harness.minihub.repos import flux, sd, wan, zimage

MODELS: dict[str, tuple[Repo, ...]] = {
    "sd15": (sd.SD15,),
    "sdxl": (sd.SDXL,),
    "flux": (flux.FLUX_DEV,),
    "flex1": (flux.FLEX1,),
    "flux_kontext": (flux.KONTEXT,),
    "chroma": (flux.CHROMA_BASE, flux.FLEX1),
    "flex2": (flux.FLEX2,),
    "zimage_turbo": (zimage.ZIMAGE_TURBO, zimage.TURBO_ADAPTER),
    "wan21_1b": (wan.WAN21_1B, wan.UMT5_XXL),
}
REPOS: dict[str, Repo] = {repo.id: repo for repos in MODELS.values() for repo in repos}
