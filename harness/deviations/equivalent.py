"""Variations that no case can notice, because they change nothing that is more than rounding: and why."""

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "live for merged",
        "",
    ): "In float32 both are the same sum in another order; the tolerances are derived from this very "
    "pair (harness/studies/spread.py: merged against live LoRA). In bfloat16 they differ.",
    ("padded before the text encoder", ""): "Gemma's attention masks padding in front, its positions are relative, and "
    "the connectors read masked places as zeros: the words come out as without padding, but for rounding.",
}
"""(variation, model; "" for all) -> the argument. Only a survivor is excused by it; what is caught counts as caught."""
ROUNDED_ALREADY = "In half precision it changes no bit of the latents: what it would round has been rounded already."
