"""Forms, as `/v1/images/edits` gets them: every field is understood or refused, none is dropped."""

import re
from collections.abc import Collection
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData

from lora_drift.server.errors import bad, clipped
from lora_drift.server.gate import ignored_in, may_be_ignored
from lora_drift.server.schemas import LoraItem, Loras

_LORA = re.compile(r"loras\[(\d*)\]\[(\w+)\]")
REPEATED = frozenset({"image", "image[]"})


async def check_names(request: Request, known: Collection[str]) -> FormData:
    """The form, each of whose fields is known (or part of a LoRA), and given once.

    Raises:
        ApiError: names the field.
    """
    form = await request.form()  # was parsed already
    for name in form:
        if name not in known and not _LORA.fullmatch(name):
            if may_be_ignored(name, request.app.state.settings):
                request.state.ignored = [*ignored_in(request), clipped(name)]
                continue
            raise bad("UNKNOWN_FIELD", f"{name}: no such field; there are {', '.join(sorted(known))}", param=name)
        if name in known and name not in REPEATED and len(form.getlist(name)) > 1:
            raise bad("FIELD_TWICE", f"{name} is given {len(form.getlist(name))} times", param=name)
    return form


def loras_of(form: FormData) -> list[LoraItem]:
    """The form's LoRAs: JSON in `loras`, or as OpenAI's clients flatten a list of objects, `loras[][path]`.

    Raises:
        ApiError: not LoRAs, in both ways at once, or flattened so that nobody can tell which field belongs to which.
    """
    flat = [(found[1], found[2], value) for name, value in form.multi_items() if (found := _LORA.fullmatch(name))]
    text = form.get("loras")
    try:
        if not flat:
            return [] if text is None else TypeAdapter(Loras).validate_json(text)  # type: ignore[arg-type]
        if text is not None:
            raise bad("LORAS_INVALID", "loras: given as JSON and field by field; leave one out", param="loras")
        return TypeAdapter(Loras).validate_python(_gathered(flat))
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise bad("LORAS_INVALID", f"loras{place}: {first['msg']}", param="loras") from error


def _gathered(flat: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
    """Items from (index or nothing, field, value). Without indices, the n-th value of a field is that of the n-th item,
    which holds only if every item has the field."""
    indexed: dict[int, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for index, field, value in flat:
        n = int(index) if index else counts.get(field, 0)
        counts[field] = counts.get(field, 0) + 1
        if field in indexed.setdefault(n, {}):
            raise bad("LORAS_INVALID", f"loras[{n}].{field} is given twice", param="loras")
        indexed[n][field] = value
    if len(set(counts.values())) > 1 and not all(index for index, _, _ in flat):
        told = ", ".join(f"{field} {count} times" for field, count in counts.items())
        raise bad("LORAS_INVALID", f"loras: {told}: which belongs to which cannot be told; give `loras` as one field "
                  "of JSON", param="loras")  # fmt: skip
    return [indexed[n] for n in sorted(indexed)]
