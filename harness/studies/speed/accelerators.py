"""What people make FLUX.1 fast with: recipes for a loaded stock pipeline whose LoRA is fused, measured beside ours.

They change the pipeline in place, and torch's compiler for the process. Without FlashAttention 3, which no package
registry has: attention is cuDNN's, as in our profiles.
"""

from collections.abc import Callable
from typing import Any

from lora_drift.pipelines.profiles import attending_with_cudnn


def flux_fast(pipe: Any) -> None:
    """github.com/huggingface/flux-fast (README, utils/pipeline_utils.py), the denoiser: q, k and v in one, float8
    weights and inputs by torchao, torch.compile with its flags. Compiled block by block, as Diffusers advises, since
    all of it at once takes tens of minutes; so it tries tile sizes for a quarter of an hour (an H200). torch keeps
    what it tried in TORCHINDUCTOR_CACHE_DIR, from where a run that was cut off goes on."""
    from torch._inductor import config

    config.coordinate_descent_tuning = True
    config.coordinate_descent_check_all_directions = True
    _flux_fast(pipe)


def flux_fast_untuned(pipe: Any) -> None:
    """The same without trying: products are cuBLAS's, which won all comparisons that the tuning made in those minutes
    (Triton's took 1.5 to 1.8 times as long), and other kernels are the compiler's first choice."""
    from torch._inductor import config

    config.max_autotune_gemm_backends = config.max_autotune_conv_backends = "ATEN"
    _flux_fast(pipe)


def _flux_fast(pipe: Any) -> None:
    from torch._inductor import config
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

    config.conv_1x1_as_mm = True
    config.epilogue_fusion = False
    pipe.transformer.fuse_qkv_projections()
    quantize_(pipe.transformer, Float8DynamicActivationFloat8WeightConfig())
    pipe.transformer.compile_repeated_blocks(fullgraph=True, mode="max-autotune-no-cudagraphs")
    pipe.transformer.forward = attending_with_cudnn(pipe.transformer.forward)


def flux_fast_decoder(pipe: Any) -> None:
    """The rest of flux-fast: four minutes more of trying, for a tenth of a second a picture."""
    import torch

    pipe.vae.to(memory_format=torch.channels_last)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode="max-autotune-no-cudagraphs", fullgraph=True)


def torchao_float8(pipe: Any) -> None:
    """torchao's float8 weights and inputs in compiled blocks, and nothing else."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

    quantize_(pipe.transformer, Float8DynamicActivationFloat8WeightConfig())
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    pipe.transformer.forward = attending_with_cudnn(pipe.transformer.forward)


RECIPES: dict[str, tuple[Callable[[Any], None], ...]] = {
    "torchao-float8": (torchao_float8,),
    "flux-fast-untuned": (flux_fast_untuned, flux_fast_decoder),
    "flux-fast": (flux_fast, flux_fast_decoder),
}
"""Name -> what it does to a pipeline, one after the other: measured after each, so that a run that is cut off while it
compiles the decoder has the denoiser's seconds. Recipes that skip steps by how little the last ones changed (cache-dit,
Diffusers' first-block cache) are not here: with random weights that says nothing."""
