"""The images of requests: in the request itself, or at places that the operator has allowed."""

import asyncio
import base64
import binascii
import socket
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from icdsel import __version__
from icdsel.console import plain
from icdsel.serve.errors import ApiError, bad_request
from icdsel.serve.limits import Limits, Opened
from icdsel.store.reading import read_whole

_SECONDS = 15.0  # for an image of another host
_KINDS = {
    *("image/jpeg", "image/jpg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"),
    *("image/x-portable-pixmap", "image/x-portable-graymap"),
}
_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
_Address = IPv4Address | IPv6Address


class ImageSource:
    """Gets the content of images by their URLs.

    Args:
        opened: Where images may come from, beside the request itself.
        limits: The limits of a request.
    """

    def __init__(self, opened: Opened, limits: Limits) -> None:
        self._opened, self._limits = opened, limits
        self._folder = None if opened.folder is None else opened.folder.resolve()
        self._http = httpx.AsyncClient(
            headers={"User-Agent": f"icdsel/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(_SECONDS, connect=5),
            follow_redirects=False,  # to wherever that host likes
            trust_env=False,  # a proxy would resolve the name again
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # requests of all clients would share them
        )

    async def content(self, url: str, param: str) -> bytes:
        """The bytes of an image.

        Raises:
            ApiError: It may not be opened, or cannot be read, or is too large.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return self._inline(url, param)
        if scheme in ("http", "https") and self._opened.hosts:
            return await self._of_host(url, param)
        if scheme == "file" and self._folder is not None:
            return await asyncio.to_thread(self._of_folder, url, param)
        allowed = ["a data: URL with the image in base64"]
        allowed += [f"http(s) URLs of {', '.join(sorted(self._opened.hosts))}"] if self._opened.hosts else []
        allowed += ["file:// URLs below the folder that is allowed"] if self._folder else []
        raise bad_request(
            f"an image has to be {' or '.join(allowed)}; other addresses are not opened", "image_not_allowed", param
        )

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    def _inline(self, url: str, param: str) -> bytes:
        head, comma, data = url.partition(",")
        kind, _, coding = head[len("data:") :].partition(";")
        if not comma or kind.lower() not in _KINDS or coding.lower() != "base64":
            raise bad_request("an image's data: URL begins like data:image/jpeg;base64,", "invalid_image", param)
        if len(data) * 3 // 4 > self._limits.image_bytes + 2:
            raise self._too_large(param)
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise bad_request("the image is not valid base64", "invalid_image", param) from None

    def _of_folder(self, url: str, param: str) -> bytes:
        parts = urlsplit(url)
        folder, refused = (
            self._folder,
            bad_request("the image is not in the allowed folder", "image_not_allowed", param),
        )
        assert folder is not None
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise refused
        try:
            path = Path(unquote(parts.path)).resolve(strict=True)
            if not path.is_relative_to(folder) or not path.is_file():
                raise refused
            if path.stat().st_size > self._limits.image_bytes:
                raise self._too_large(param)
            return read_whole(path, self._limits.image_bytes)
        except (OSError, ValueError, RuntimeError):  # missing, a name with a zero byte, links in a circle
            raise refused from None

    async def _of_host(self, url: str, param: str) -> bytes:
        """Asks the address that was checked, not the name, which could lead elsewhere a moment later."""
        refused = bad_request("the image is at a host that is not allowed", "image_not_allowed", param)
        try:
            parts = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError):
            raise refused from None
        host = parts.host.lower().rstrip(".")
        if host not in self._opened.hosts or parts.userinfo:
            raise refused
        address = await _address_of(host, parts.port or (443 if parts.scheme == "https" else 80), param)
        request = self._http.build_request(
            "GET",
            parts.copy_with(host=str(address), fragment=None),
            headers={"Host": parts.netloc.decode("ascii")},
            extensions={"sni_hostname": host} if parts.scheme == "https" else {},
        )
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._fetched(request, param)
        except (TimeoutError, httpx.HTTPError) as error:
            reason = plain(type(error).__name__)
            raise bad_request(f"the image could not be fetched ({reason})", "image_not_fetched", param) from None

    async def _fetched(self, request: httpx.Request, param: str) -> bytes:
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                said = f"HTTP {response.status_code}"
                raise bad_request(f"the image could not be fetched ({said})", "image_not_fetched", param)
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > self._limits.image_bytes:
                    raise self._too_large(param)
            return bytes(content)
        finally:
            await response.aclose()

    def _too_large(self, param: str) -> ApiError:
        return ApiError(413, f"an image has more than {self._limits.image_mb:g} MB", "too_large", param)


def media_type(content: bytes) -> str:
    """The media type of an image that was read."""
    return next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), "image/x-portable-pixmap")


async def _address_of(host: str, port: int, param: str) -> _Address:
    """The address of a host. A name that leads into a private network is refused; an address that is named is not.

    Raises:
        ApiError: It has none, or one that is not allowed.
    """
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise bad_request("the image's host is not known", "image_not_fetched", param) from None
    addresses = [ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    if not addresses or not all(_is_public(address) for address in addresses):
        raise bad_request("the image's host is in a private network", "image_not_allowed", param)
    return addresses[0]


def _is_public(address: _Address) -> bool:
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (inner or address).is_global and not (inner or address).is_multicast
