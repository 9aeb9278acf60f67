import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
from fake_chooser import png
from serving import data_url

from icdsel.serve.errors import ApiError
from icdsel.serve.images import ImageSource, media_type
from icdsel.serve.limits import Limits, Opened

PICTURE = png()
LIMITS = Limits(image_mb=0.001)  # 1,048 bytes
NOWHERE = Opened()


def content(url: str, opened: Opened = NOWHERE) -> bytes:
    async def main() -> bytes:
        source = ImageSource(opened, LIMITS)
        try:
            return await source.content(url, "image")
        finally:
            await source.close()

    return asyncio.run(main())


def refused(url: str, opened: Opened = NOWHERE, status: int = 400) -> ApiError:
    with pytest.raises(ApiError) as caught:
        content(url, opened)
    assert caught.value.status == status and caught.value.param == "image"
    return caught.value


def test_a_data_url_is_its_content():
    assert content(data_url(PICTURE)) == PICTURE
    assert content(data_url(PICTURE).replace("data:", "DATA:")) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,*",
        "data:image/png;base64,abc",
        "data:image/png,abc",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,PHN2Zz4=",
        "data:",
        "data:image/png;base64",
    ],
)
def test_other_data_urls_are_refused(url):
    assert refused(url).code == "invalid_image"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "https://example.org/a.png",
        "file:///etc/hostname",
        "/etc/hostname",
        "etc/hostname",
        "ftp://example.org/a.png",
        "gopher://example.org",
        "s3://bucket/a.png",
        "",
        " data:image/png;base64,AAAA",
        "hTTp://example.org/a.png",
    ],
)
def test_nothing_else_is_opened_by_default(url):
    assert refused(url).code == "image_not_allowed"


def test_an_image_above_the_limit_is_refused_before_it_is_decoded():
    refused(data_url(b"x" * 2000), status=413)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a b.png").write_bytes(PICTURE)
    (tmp_path / "in/large.png").write_bytes(b"x" * 2000)
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (tmp_path / "in/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in/own.png").symlink_to(tmp_path / "in/a b.png")
    (tmp_path / "in/around.png").symlink_to(tmp_path / "in/around.png")
    (tmp_path / "in-two").mkdir()
    (tmp_path / "in-two/a.png").write_bytes(PICTURE)
    os.mkfifo(tmp_path / "in/pipe.png")
    return tmp_path / "in"


def test_a_file_in_the_allowed_folder_is_read(folder: Path):
    opened = Opened(folder=folder)
    assert content((folder / "a b.png").as_uri(), opened) == PICTURE
    assert content((folder / "own.png").as_uri(), opened) == PICTURE


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "link.png",
        "around.png",
        "missing.png",
        "../in-two/a.png",
        "pipe.png",
        "",
        "%00",
        "a%20b.png?x",
        "%2e%2e/secret.png",
    ],
)
def test_nothing_beside_the_allowed_folder_is_read(folder: Path, path: str):
    assert refused(f"{folder.as_uri()}/{path}", Opened(folder=folder)).code == "image_not_allowed"


def test_a_file_of_another_host_is_refused(folder: Path):
    refused("file://host" + str(folder / "a b.png"), Opened(folder=folder))
    refused((folder / "large.png").as_uri(), Opened(folder=folder), status=413)


def raw_server(reply: bytes):
    """A socket that answers one request with `reply`."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return listener, listener.getsockname()[1], asked


def http(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n".encode() + body


LOCAL = Opened(hosts=frozenset({"127.0.0.1", "localhost"}))


def test_an_image_of_an_allowed_host_is_fetched():
    listener, port, asked = raw_server(http(PICTURE))
    with listener:
        assert content(f"http://127.0.0.1:{port}/a.png?x=1#frag", LOCAL) == PICTURE
    assert asked[0].startswith(b"GET /a.png?x=1 HTTP/1.1") and f"host: 127.0.0.1:{port}".encode() in asked[0].lower()


def test_a_name_that_leads_into_a_private_network_is_refused():
    listener, port, asked = raw_server(http(PICTURE))
    with listener:
        error = refused(f"http://localhost:{port}/a.png", LOCAL)
    assert "private network" in error.message and not asked


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "[::1]", "127.0.0.1@example.org", "example.org@127.0.0.1", "0x7f000001", "127.1"]
)
def test_other_hosts_are_refused(host):
    refused(f"http://{host}:1/a.png", LOCAL)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (http(b"", "302 Found", "Location: http://169.254.169.254/\r\n"), 400),
        (http(b"no", "404 Not Found"), 400),
        (http(b"x" * 2000), 413),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nshort", 400),
        (b"garbage\r\n\r\n", 400),
        (b"", 400),
    ],
)
def test_redirects_and_faults_of_a_host_are_errors_of_the_request(reply, status):
    listener, port, asked = raw_server(reply)
    with listener:
        refused(f"http://127.0.0.1:{port}/a.png", LOCAL, status)
    assert len(asked) == 1


def test_media_types_are_told_by_content():
    assert media_type(PICTURE) == "image/png" and media_type(b"\xff\xd8\xff\xe0") == "image/jpeg"


def test_no_cookie_of_a_host_is_kept():
    listener, port, asked = raw_server(http(PICTURE, more="Set-Cookie: client=first; Path=/\r\n"))

    async def main() -> None:
        source = ImageSource(LOCAL, LIMITS)
        for _ in range(2):
            await source.content(f"http://127.0.0.1:{port}/a.png", "image")
        await source.close()

    with listener:
        asyncio.run(main())
    assert len(asked) == 2 and b"cookie" not in asked[1].lower()
