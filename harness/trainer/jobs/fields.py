"""Fields of the trainer's job files beyond those of `job_file.py`: what they do to samples, or that they do nothing.

From trainer 0.7.29 to 0.12.26 (toolkit/config_modules.py, jobs/process/BaseSDTrainProcess.py). A name that stands
nowhere is unknown to the trainer, which ignores it: a misspelling, or a newer trainer's field.
"""

UNHONOURED: dict[str, dict[str, str]] = {
    "process": {
        "adapter": "an adapter (IP, T2I, ControlNet, ...) is not rendered",
        "embedding": "a trained embedding is not loaded",
        "decorator": "a decorator's tokens are not loaded",
        "do_lorm": "LoRM is not rendered",
    },
    "train": {
        "free_u": "FreeU is not rendered",
        "train_turbo": "the turbo sampler is not rendered",
        "show_turbo_outputs": "the turbo sampler is not rendered",
        "merge_network_on_save": "the checkpoints are whole models instead of LoRA files",
        "attention_backend": "another attention kernel rounds otherwise",
        "xformers": "another attention kernel rounds otherwise",
    },
    "model": {
        "lora_path": "the LoRA that was merged into the base model is not loaded",
        "assistant_lora_path": "the assistant LoRA is left out: the trainer takes it out again while it samples, which "
        "leaves a rounding behind",
        "inference_lora_path": "the inference LoRA is not loaded",
        "refiner_name_or_path": "the refiner is not rendered",
        "vae_path": "the VAE is taken from the base model",
        "unet_path": "the denoiser is taken from the base model",
        "is_v_pred": "v-prediction is not rendered",
        "use_flux_cfg": "FLUX with true guidance is not rendered",
        "use_text_encoder_1": "both text encoders are used",
        "use_text_encoder_2": "both text encoders are used",
        "experimental_xl": "not rendered",
        "attn_masking": "padding is attended to, as without the field",
        "text_encoder_bits": "the text encoder is not quantised",
        "model_paths": "the files are taken from the base model",
        "compile": "compiled kernels round otherwise",
        "te_device": "another device rounds otherwise",
        "vae_device": "another device rounds otherwise",
        "latent_space_version": "not rendered",
    },
    "network": {
        "lorm": "LoRM is not rendered",
    },
    "sample": {
        "adapter_conditioning_scale": "an adapter is not rendered",
        "refiner_start_at": "the refiner is not rendered",
        "extra_values": "an adapter is not rendered",
    },
    "samples": {
        "do_cfg_norm": "the trainer reads sample.do_cfg_norm only, and so do we",
    },
}
"""Section -> field -> what happens instead. Listed when the field is set to something else than in `NOTHING`."""
NOTHING: dict[str, object] = {
    "use_text_encoder_1": True,
    "use_text_encoder_2": True,
    "text_encoder_bits": 16,
    "attention_backend": "native",
    "adapter_conditioning_scale": 1.0,
    "refiner_start_at": 0.5,
}
"""The value at which such a field does nothing, where that is not false, none or empty."""

HARMLESS: dict[str, str] = {
    "process": "type device training_folder training_seed slider "
    "log_dir logging name performance_log_every torch_profiler guidance sqlite_db_path "
    "lorm_extract_mode lorm_extract_mode_param",
    "network": "alpha conv conv_alpha dropout linear linear_alpha lokr_factor lokr_full_rank network_kwargs "
    "old_lokr_format rank split_multistage_loras layer_offloading transformer_only",
    "save": "hf_private hf_repo_id max_step_saves_to_keep push_to_hub save_every save_format",
    "sample": "sample_every",
    "samples": "",
    "model": "dtype ignore_if_contains is_auraflow is_flux is_lumina2 is_pixart is_pixart_sigma is_ssd is_v2 is_v3 "
    "is_vega is_xl layer_offloading_text_encoder_percent layer_offloading_transformer_percent only_if_contains "
    "refiner_start_at split_model_other_module_param_count_scale split_model_over_gpus unet_sample_size",
    "train": "adapter_assist_name_or_path adapter_assist_type adapter_lr adaptive_scaling_factor "
    "audio_loss_multiplier batch_noise_correction_scale batch_size blank_prompt_preservation "
    "blank_prompt_preservation_multiplier blended_blur_noise bypass_guidance_embedding cfg_rescale cfg_scale "
    "content_or_style correct_pred_norm correct_pred_norm_multiplier diff_output_preservation "
    "diff_output_preservation_class diff_output_preservation_multiplier differential_guidance_scale "
    "diffusion_feature_extractor_path diffusion_feature_extractor_weight disable_sampling do_batch_noise_correction "
    "do_blank_stabilization do_cfg do_differential_guidance do_guidance_loss do_guidance_loss_cfg_zero "
    "do_paramiter_swapping do_prior_divergence do_random_cfg do_signal_amplification do_signal_correction_noise "
    "dynamic_noise_offset ema_config embedding_lr force_consistent_noise force_first_sample gradient_accumulation "
    "gradient_accumulation_steps gradient_checkpointing guidance_loss_target img_multiplier inverted_mask_prior "
    "inverted_mask_prior_multiplier latent_feature_extractor_path latent_feature_loss_weight latent_multiplier "
    "learnable_snr_gos linear_timesteps linear_timesteps2 loss_target loss_type lr lr_scheduler lr_scheduler_params "
    "match_adapter_assist match_adapter_chance match_noise_norm max_cfg_scale max_denoising_steps max_grad_norm "
    "max_negative_prompts min_denoising_steps min_snr_gamma negative_prompt next_sample_timesteps noise_multiplier "
    "noise_offset noise_scheduler noisy_latent_multiplier num_train_timesteps optimal_noise_pairing_samples optimizer "
    "optimizer_params paramiter_swapping_factor pred_scaler prompt_dropout_prob prompt_saturation_chance "
    "random_noise_multiplier random_noise_shift refiner_lr reg_weight sdp short_and_long_captions "
    "short_and_long_captions_encoder_split signal_amplification_strength signal_correction_noise_scale "
    "single_item_batching skip_first_sample snr_gamma standardize_images standardize_latents start_step "
    "switch_boundary_every target_noise_multiplier target_norm_std target_norm_std_value text_encoder_lr "
    "timestep_type train_refiner train_unet unconditional_prompt unet_lr weight_jitter",
}
"""Section -> fields of the training, or read elsewhere: a sample of a given LoRA file does not change with them."""
NEWER: dict[str, dict[str, tuple[str, str]]] = {
    "sample": {"sample_start_step": ("0.10.24", "")},
    "network": {"all_layers": ("0.10.18", "")},
    "train": {
        "do_fft_loss": ("0.9.13", ""),
        "do_fft_velocity_equiv_weight": ("0.9.13", ""),
        "guidance_loss_schedule": ("0.12.6", ""),
        "max_loss": ("0.9.10", ""),
        "max_loss_debug": ("0.9.10", ""),
        "merge_network_on_save_strength": ("0.8.2", ""),
        "t0_loss_target": ("0.8.0", ""),
        "t0_velocity_equiv_weight": ("0.9.13", ""),
        "validation_config": ("0.10.29", ""),
    },
    "model": {
        "block_compile": ("0.10.6", "compiled kernels round otherwise"),
        "cache_size_limit": ("0.10.6", ""),
        "compile_dynamic": ("0.10.6", ""),
        "compile_fullgraph": ("0.10.6", ""),
        "compile_mode": ("0.10.6", ""),
        "in_context": ("0.9.4", ""),
        "unconditional_lora_path": ("0.10.13", ""),
    },
}
"""Section -> field -> the version of the trainer that read it first (its version.py at the commit which brought it),
and what it does to samples of the models here: nothing, mostly. What `all_layers` trained stands in the LoRA file."""
MODEL_KWARGS = ("train_high_noise train_low_noise invert_inpaint_mask_chance inpaint_dropout control_dropout "
                "inpaint_random_chance random_blur_mask random_dialate_mask do_random_inpainting")  # fmt: skip
"""The same of `model.model_kwargs`."""
