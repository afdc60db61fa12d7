"""Images in a request: data URLs, and URLs of allowed hosts; nothing else is read or downloaded."""

import base64
import ipaddress
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from ..processing.image_processing_minigpt4 import MAX_PIXELS, load_image

MAX_BYTES = 20_000_000  # of a downloaded image
_SECONDS, _REDIRECTS = 10, 3
# The threads that decode images: each image may take hundreds of MB, so only a few at a time.
_DECODERS = ThreadPoolExecutor(2, "pictures")


def as_data_url(address, hosts=()):
    """(data URL, pixels) of an image that was decoded successfully.

    Args:
        address: "data:image/...;base64,...", or an http(s) URL.
        hosts: names or IP addresses that images may be downloaded from. A name must resolve to public addresses; a
            private address is allowed only if it is itself in the list.

    Raises:
        ValueError: one line: another kind of URL, a host that is not allowed, a response that is not an image, an image
            that cannot be read.
    """
    if address.startswith(("http://", "https://")):
        data = fetch(address, hosts)
    elif address.startswith("data:"):
        data = None
    else:  # a path would be one on this machine
        raise ValueError(f"{address[:40]!r} is not a picture's address; expected data:image/...;base64,...")
    pixels = _DECODERS.submit(_pixels, address if data is None else data).result()
    return address if data is None else "data:image/*;base64," + base64.b64encode(data).decode(), pixels


def _pixels(source):
    width, height = load_image(source).size
    return width * height


def check_total(pixels):
    """Raises ValueError if the images of a request are too large, together or individually."""
    if pixels > MAX_PIXELS:
        raise ValueError(f"the pictures have {pixels} pixels in total; the limit is {MAX_PIXELS}, scale them down first")


def fetch(address, hosts):
    """The bytes at a URL. Each redirect is checked like the URL itself.

    Raises: ValueError, as `as_data_url` does.
    """
    try:
        url = httpx.URL(address)
        with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
            for _ in range(_REDIRECTS + 1):
                # The connection uses the IP address that was checked: resolving the name again could give another one.
                pinned = url.copy_with(host=_public_address(url, hosts))
                headers = {"Host": url.netloc.decode(), "Accept": "image/*", "Accept-Encoding": "identity"}
                asked = client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": url.host})
                with asked as answer:
                    if not answer.has_redirect_location:
                        return _read(answer, url)
                    url = url.join(answer.headers["location"])
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise ValueError(f"{address[:80]}: cannot be fetched ({type(error).__name__})") from error
    raise ValueError(f"{address[:80]}: redirects more than {_REDIRECTS} times")


def _public_address(url, hosts):
    """The IP address of an allowed host."""
    if url.scheme not in ("http", "https") or url.host not in hosts:
        raise ValueError(
            f"pictures are not fetched from {url.host[:80]!r}; send a data URL, or start the server with --allow-host"
        )
    found = socket.getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    addresses = [entry[4][0] for entry in found]
    private = [address for address in addresses if not ipaddress.ip_address(address).is_global and address not in hosts]
    if private:
        raise ValueError(f"{url.host} leads to a private address; allow that address itself, or send a data URL")
    return addresses[0]


def _read(answer, url):
    if answer.status_code != 200:
        raise ValueError(f"{url.host} answered {answer.status_code} instead of a picture")
    data, last = b"", time.monotonic() + _SECONDS
    for part in answer.iter_raw():
        data += part
        if time.monotonic() > last:  # each chunk may be in time by itself
            raise ValueError(f"{url.host} took more than {_SECONDS} seconds to send the picture")
        if len(data) > MAX_BYTES:
            raise ValueError(f"{url.host} sends more than {MAX_BYTES} bytes; the picture is too large")
    return data
