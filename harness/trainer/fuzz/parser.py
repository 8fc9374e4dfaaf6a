"""The trainer's side: what it resolves a job to. Runs in its environment, with its checkout on the path:

    python -m lora_drift.harness.trainer.fuzz.parser

reads a job (JSON) a line, and answers with a line: {"samples": [...]}, or {"refused": why}. All of it is the trainer's
own code, from `replace_env_vars_in_string` and `preprocess_config` to the list of `GenerateImageConfig` that
`BaseSDTrainProcess.sample` hands over.
"""

import contextlib
import json
import sys
from types import SimpleNamespace
from typing import Any

FIELDS = (
    "prompt", "negative_prompt", "negative_prompt_2", "seed", "num_inference_steps", "guidance_scale",
    "guidance_rescale", "network_multiplier", "width", "height", "num_frames", "fps", "ctrl_idx", "do_cfg_norm",
    "ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3",
)  # fmt: skip


def resolved(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of each sample, as the trainer resolves them."""
    import torch
    from jobs.process import BaseSDTrainProcess
    from toolkit.config import preprocess_config
    from toolkit.config_modules import SampleConfig
    from toolkit.prompt_utils import inject_trigger_into_prompt

    process = preprocess_config(job)["config"]["process"][0]
    sample = SampleConfig(**process["sample"])
    found: list[Any] = []
    sd = SimpleNamespace(
        inject_trigger_into_prompt=inject_trigger_into_prompt,
        generate_images=lambda configs, sampler: found.extend(configs),
    )
    stub = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True),
        save_root="", sample_config=sample, first_sample_config=sample, adapter_config=None, embedding=None,
        adapter=None, trigger_word=process.get("trigger_word"), logger=None, ema=None, sd=sd,
        post_process_generate_image_config_list=lambda configs: configs,
    )  # fmt: skip
    BaseSDTrainProcess.sample(stub, 0)
    for config in found:
        torch.manual_seed(config.seed)  # as generate_images begins; it refuses some seeds
    return [{name: getattr(config, name) for name in FIELDS} for config in found]


def main() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the trainer's classes print
        from jobs.process import BaseSDTrainProcess
        from toolkit.config import replace_env_vars_in_string

        BaseSDTrainProcess.sample.__globals__["flush"] = lambda: None  # collects garbage, a fifth of a second each
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            try:
                answer: dict[str, Any] = {"samples": resolved(json.loads(replace_env_vars_in_string(line)))}
            except Exception as error:  # noqa: BLE001  whatever it raises, it would not have rendered
                answer = {"refused": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
