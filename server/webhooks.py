"""Telling a client that its request has ended."""

import base64
import hashlib
import hmac
import json
import logging
import time
from typing import Any

from lora_drift.server import fetch
from lora_drift.server.config import Settings
from lora_drift.server.store import Row

log = logging.getLogger("lora_drift.server.webhooks")

TIMEOUT = 30
LONGEST_DELAY = 3600


def signed(request_id: str, body: bytes, secret: str, now: float) -> dict[str, str]:
    """Headers of Standard Webhooks (standardwebhooks.com), whose libraries check them: also that they are not old."""
    moment = str(int(now))
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    digest = hmac.new(key, f"{request_id}.{moment}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": request_id, "webhook-timestamp": moment, "webhook-signature": signature}


async def deliver(row: Row, result: dict[str, Any], settings: Settings, now: float) -> tuple[str, float | None]:
    """POST the result; ("delivered" | "retried" | "given_up", when to try again)."""
    assert row.webhook_url is not None
    body = json.dumps(result).encode()
    headers = {"Content-Type": "application/json", "X-Request-Id": row.id, "X-Delivery-Try": str(row.webhook_tries + 1)}
    if settings.webhook_secret is not None:
        # The time is the machine's own: whoever reads it compares it with his.
        headers |= signed(row.id, body, settings.webhook_secret.get_secret_value(), time.time())
    try:
        async with fetch.request(
            "POST", row.webhook_url, private=settings.allow_private_urls, timeout=TIMEOUT, headers=headers, content=body
        ) as response:
            if response.is_success:
                return "delivered", None
            cause = f"answered {response.status_code}"
    except fetch.FetchError as error:
        cause = str(error).replace(fetch.shown(row.webhook_url), "")  # whose path may be the client's secret
    tries = row.webhook_tries + 1
    log.warning("a webhook failed", extra={"request_id": row.id, "try": tries, "cause": cause})
    if tries >= settings.webhook_tries:
        return "given_up", None
    return "retried", now + min(settings.webhook_first_delay * 2 ** (tries - 1), LONGEST_DELAY)
