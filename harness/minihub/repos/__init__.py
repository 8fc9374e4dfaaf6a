"""Every miniature repository, and which of them each model id loads."""

from harness.minihub.repo import Repo
from harness.minihub.repos import flux, qwen, sd, wan, zimage

MODELS: dict[str, tuple[Repo, ...]] = {
    "sd15": (sd.SD15,),
    "sdxl": (sd.SDXL,),
    "flux": (flux.FLUX_DEV,),
    "qwen_image": (qwen.QWEN_IMAGE,),
    "qwen_image_2512": (qwen.QWEN_IMAGE_2512,),
    "qwen_image_edit": (qwen.QWEN_IMAGE_EDIT,),
    "qwen_image_edit_plus": (qwen.QWEN_IMAGE_EDIT_2509,),
    "qwen_image_edit_plus_2511": (qwen.QWEN_IMAGE_EDIT_2511,),
    "zimage_turbo": (zimage.ZIMAGE_TURBO, zimage.TURBO_ADAPTER),
    "wan21_1b": (wan.WAN21_1B, wan.UMT5_XXL),
}
REPOS: dict[str, Repo] = {repo.id: repo for repos in MODELS.values() for repo in repos}
