"""Every miniature repository, and which of them each model id loads."""

from harness.minihub.repo import Repo
from harness.minihub.repos import flux, ltx2, sd, wan, zimage

MODELS: dict[str, tuple[Repo, ...]] = {
    "sd15": (sd.SD15,),
    "sdxl": (sd.SDXL,),
    "flux": (flux.FLUX_DEV,),
    "zimage_turbo": (zimage.ZIMAGE_TURBO, zimage.TURBO_ADAPTER),
    "wan21_1b": (wan.WAN21_1B, wan.UMT5_XXL),
    "ltx2": (ltx2.LTX2,),
    "ltx2.3": (ltx2.LTX23, ltx2.GEMMA3_12B),
}
REPOS: dict[str, Repo] = {repo.id: repo for repos in MODELS.values() for repo in repos}
