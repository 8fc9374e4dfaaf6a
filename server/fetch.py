"""Fetching what a client names, without letting it point the server at its own network."""

import asyncio
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from urllib.parse import urljoin, urlsplit

import httpx2 as httpx

REDIRECTS = 5
SLOW_FOR = 30.0
"""Seconds that a download may be slow for."""
LOOKUP_TIMEOUT = 10.0
_looking_up = ThreadPoolExecutor(64, "look-up")
"""Threads of their own: slow look-ups would hold up whatever else waits for a thread."""
_UNICAST = ipaddress.ip_network("2000::/3")


class FetchError(Exception):
    """Says what went wrong without the URL's query, which may hold a signature."""


def shown(url: str) -> str:
    """The URL without user, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    # Outside of it, and in those two, lie addresses that hold an IPv4 address that nobody checked.
    return ip.is_global and ip in _UNICAST and not (ip.sixtofour or ip.teredo)


def check_url(url: str, *, private: bool) -> None:
    """Refuse what needs no look at the network to refuse.

    Raises:
        FetchError: not an https URL with a host.
    """
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError(f"not a URL: {error}") from error
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise FetchError(f"{shown(url)}: only https URLs are fetched")
    if not host or parts.username or parts.password or " " in url or not url.isprintable():
        raise FetchError(f"{shown(url)}: give a host, and no user or password")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError(f"{shown(url)}: redirects to what is no URL") from error


def look_up(host: str, port: int) -> list[str]:
    """The host's addresses. A system whose name server is slow keeps this waiting, and nothing can hurry it."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def _address(url: str, *, private: bool) -> str:
    """An address of the URL's host, checked; the connection goes there, so that no second look-up can change it."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT):
            loop = asyncio.get_running_loop()
            addresses = await loop.run_in_executor(_looking_up, look_up, parts.hostname or "", port)
    except TimeoutError as error:
        raise FetchError(f"{shown(url)}: its host was not found in {LOOKUP_TIMEOUT:g} s") from error
    except (OSError, UnicodeError) as error:  # the latter where a label is empty or too long
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise FetchError(f"{shown(url)}: its host has no address ({why})") from error
    if not private and not all(map(is_public, addresses)):
        raise FetchError(f"{shown(url)}: private and local addresses are not fetched from")
    return addresses[0]


def _trusted() -> ssl.SSLContext | bool:
    """The authorities of SSL_CERT_FILE and SSL_CERT_DIR, where a company has its own; else httpx's."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    return _context(file, folder) if file or folder else True


@cache
def _context(file: str | None, folder: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=file, capath=folder)


@asynccontextmanager
async def request(
    method: str,
    url: str,
    *,
    private: bool,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    content: bytes | None = None,
) -> AsyncIterator[httpx.Response]:
    """An answer (its body not yet read), after redirects that were each checked like the first URL.

    The token is sent to the first URL's scheme and host only.

    Raises:
        FetchError: refused, unreachable, too slow, or too many redirects.
    """
    home = urlsplit(url)[:2]
    # No environment: a proxy would look the host up again, and .netrc holds other people's passwords.
    async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(30), verify=_trusted()) as client:
        try:
            async with asyncio.timeout(timeout):
                for _ in range(REDIRECTS + 1):
                    check_url(url, private=private)
                    parts = urlsplit(url)
                    pinned = httpx.URL(url).copy_with(host=await _address(url, private=private))
                    bearer = {"Authorization": f"Bearer {token}"} if token and parts[:2] == home else {}
                    sent = client.build_request(
                        method,
                        pinned,
                        # identity: what is counted on the way in is what is kept.
                        headers={**(headers or {}), **bearer, "Host": parts.netloc, "Accept-Encoding": "identity"},
                        content=content,
                        extensions={"sni_hostname": parts.hostname},
                    )
                    response = await client.send(sent, stream=True)
                    if not response.has_redirect_location or method != "GET":
                        yield response
                        await response.aclose()
                        return
                    await response.aclose()
                    url = _joined(url, response.headers["location"])
                raise FetchError(f"{shown(url)}: more than {REDIRECTS} redirects")
        except TimeoutError as error:
            raise FetchError(f"{shown(url)}: not finished after {timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FetchError(f"{shown(url)}: {type(error).__name__}") from error


async def chunks(response: httpx.Response, limit: int, slowest: float = 0) -> AsyncIterator[bytes]:
    """The body, as long as it is within `limit` bytes, and comes at `slowest` bytes a second or faster (on the whole;
    not asked in the first SLOW_FOR seconds).

    Raises:
        FetchError: not a 200, compressed, larger than the limit, too slow, or shorter than announced.
    """
    url = shown(str(response.request.url.copy_with(host=response.request.extensions["sni_hostname"])))
    if response.status_code != 200:
        raise FetchError(f"{url}: answered {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(f"{url}: answered with a compressed body")
    announced = response.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise FetchError(f"{url}: larger than {limit} bytes")
    count, began = 0, time.monotonic()
    async for chunk in response.aiter_raw():
        count += len(chunk)
        if count > limit:
            raise FetchError(f"{url}: larger than {limit} bytes")
        seconds = time.monotonic() - began
        if seconds > SLOW_FOR and count < slowest * seconds:
            raise FetchError(f"{url}: slower than {slowest / 1000:g} kB/s ({count} bytes in {seconds:.0f} s)")
        yield chunk
