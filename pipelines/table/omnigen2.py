"""OmniGen2."""

from lora_drift.pipelines.spec import ModelSpec, Quantizes, Scheduler

ROWS = (
    ModelSpec(
        id="omnigen2",
        title="OmniGen2",
        kind="image",
        family="omnigen2",
        pipeline="ours",
        base="OmniGen2/OmniGen2",
        denoisers={"": "transformer"},
        quantizes=Quantizes(encoder_qtype="qtype_te", reads="neither", by_default=(False, True)),
        lora_prefixes=("diffusion_model.", "transformer."),
        scheduler=Scheduler("FlowMatchEulerUpwards", {"num_train_timesteps": 1000}),
        size_divisor=8,
        width=1024,
        height=1024,
        steps=25,
        guidance_scale=4.0,
        guidance="cfg",
        max_sequence_length=256,
        controls=(0, 1),
        why_ours="Diffusers has neither the model nor the pipeline.",
        quirks=(
            "The chat template is applied twice, to the negative prompt too, also to an empty one.",
            "Image guidance is 1: a control image stays in the negative pass.",
            "The latents of a control image are a sample of the VAE's posterior, drawn from the same stream as the "
            "noise and before it, so that a control image changes the noise.",
            "Rendered at sizes floored to 16 (and at most a megapixel), then stretched to the size asked for.",
            "Weights are read in bfloat16 whatever the job's dtype is.",
            "Time is shifted by the root of the number of latent pixels, before they are grouped into patches.",
        ),
        source=(
            "extensions_built_in/diffusion_models/omnigen2/__init__.py",
            "extensions_built_in/diffusion_models/omnigen2/src/pipelines/omnigen2/pipeline_omnigen2.py",
            "extensions_built_in/diffusion_models/omnigen2/src/models/transformers/transformer_omnigen2.py",
            "extensions_built_in/diffusion_models/omnigen2/src/schedulers/scheduling_flow_match_euler_discrete.py",
        ),
    ),
)
