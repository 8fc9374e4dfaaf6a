"""Mutants that change nothing that anybody could notice, and why. Only a survivor is excused by it."""

NOT_HERE: dict[str, str] = {
    "families/omnigen2_triton_norm.py": "Not decidable on a CPU: the kernel is compiled and run on a GPU only, where "
    "the bfloat16 cases of omnigen2 hold it to the bit (`pytest cases -m gpu`).",
}
"""File -> why no case and no unit test without a GPU can run it."""
# fmt: off
ARGUED: dict[str, dict[str, str]] = {
    "adapter.py": {
        "RENDERS_IN: 8 -> 7":
            "How much of a GPU's memory is left free decides where original weights wait, not what is computed.",
        "Adapter._apply: module.packed_data if packed else module.weight -> module.weight":
            "The `weight` of a packed layer is computed from `packed_data` on the same device, which is all that "
            "is asked here.",
    },
    "families/flux2.py": {
        "SOURCE: 'flux2_model.py' -> ''":
            "The files of the trainer that a row follows are there to be read.",
        "_files: tensors = {} -> pass":
            "Lets go of the first file's tensors before the next is read: memory, not values.",
    },
    "families/flux2_rounding.py": {
        "round_like_the_trainers_network: options -> finish(without it)":
            "Of the options the pipelines give `output_type` only, as \"pil\", which is what it is without.",
        "_rotations.forward: device=ids.device -> torch.arange(without it)":
            "Not decidable on a CPU: there the ids are where the numbers are made anyway.",
        "_rotations.forward: -1 -> 1":
            "The angles have two axes: 1 is the last.",
    },
    "families/ltx2.py": {
        "_mix_registers.mix: mask >= -9000.0 -> mask > -9000.0":
            "The mask holds 0 or a number far below, never -9000.",
    },
    "families/omnigen2_transformer.py": {
        "TRITON: find_spec('triton') is not None -> find_spec('triton') is None":
            "Not decidable on a CPU: only what lies on a GPU asks for it.",
        "TRITON: 'triton' -> ''":
            "Not decidable on a CPU: only what lies on a GPU asks for it.",
    },
    "families/sd.py": {
        "ROWS: encoder_attention={'text_encoder': 'sdpa', 'text_encoder_2': 'sdpa'} -> ModelSpec(without it)":
            "The transformers that is installed chooses the same by itself; the release matrix renders the others.",
    },
    "finite.py": {
        "words: 1.0 -> -1.0":
            "Whether a change is finite does not depend on its sign.",
    },
    "loading.py": {
        "pin_attention_backends: transformers.__version__.startswith('4.') -> False":
            "Not decidable here: transformers 4 is not installed; the release matrix renders with it.",
    },
    "lora.py": {
        "_resolver: strict=True -> zip(without it)":
            "Only as many prefixes as encoders come here (`len(prefixes) == len(encoders)`).",
    },
    "quantized_layers.py": {
        "pack: weight.reshape(rows, -1, GROUP) -> weight.reshape(-1, rows, GROUP)":
            "The groups are the same numbers in the same order of memory, which is all that `weight` reads back.",
    },
    "runtime.py": {
        "Base.__init__: False -> True (2)":
            "`load`, the only caller, gives every option.",
    },
    "spec.py": {
        "nearest: max(toolkit, TOOLKITS[0], key=age) -> max(TOOLKITS[0], toolkit, key=age)":
            "The order tells two versions apart that are one version.",
        ("nearest: min(max(toolkit, TOOLKITS[0], key=age), NEWEST, key=age) -> min(NEWEST, max(toolkit, "
         "TOOLKITS[0], key=age), key=age)"):
            "The order decides between versions of the same age only, which are the same version.",
    },
    "text.py": {
        "_clip: 49152 - 256 - 2 -> 49152 - 256 + 2":
            "CLIP's merges.txt ends there: nothing lies beyond.",
    },
}
# fmt: on
"""File -> mutant (`Point.key`) -> the argument."""
