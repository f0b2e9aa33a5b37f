"""URL and image attacks against a live gateway: nothing private is reached, no worker is held."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest
from PIL import Image

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.fake_web import FakeResolver, FakeWeb, response, serving

# A sub-range of loopback plays the public internet; 127.0.0.1 is the private victim.
WORLD = "127.0.0.2"
VICTIM = "127.0.0.1"

LEAKS = re.compile(
    r"\d+\.\d+\.\d+\.\d+|\b0x[0-9a-f]{4,}|/[a-z]+/[a-z]+/|object at|Traceback|PIL\.|::1", re.I
)


@dataclass
class Scene:
    """The gateway under attack, with the world around it."""

    gateway: LiveGateway
    engine: FakeEngine
    world: FakeWeb
    victim: FakeWeb
    resolver: FakeResolver

    def refused(self, *urls: str, within: float = 10) -> str:
        """Show the images; the answer must be a clean 400 or 413. Returns its code."""
        before = len(self.engine.seen)
        began = time.monotonic()
        answer = self.gateway.show(*urls)
        elapsed = time.monotonic() - began
        error = answer.json()["error"]
        too_large = error["code"] in ("image_too_large", "request_too_large")
        assert answer.status_code == (413 if too_large else 400), answer.text
        assert not LEAKS.search(error["message"]), error["message"]
        assert elapsed < within
        assert self.victim.connections == 0, "the victim was reached"
        assert len(self.engine.seen) == before, "the engine was bothered"
        return str(error["code"])


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    from contextlib import ExitStack

    from tests.vora_serve.gateway.fake_engine import ThreadServer, running
    from vora_serve.gateway import create_app, load_settings

    with ExitStack() as stack:
        engine = stack.enter_context(running(FakeEngine()))
        world = stack.enter_context(serving(FakeWeb(WORLD)))
        victim = stack.enter_context(serving(FakeWeb(VICTIM)))
        victim.pages["/secret.png"] = response(make_image())
        resolver = FakeResolver()
        settings = load_settings(
            flags={
                "upstreams": [engine.url],
                "images": {
                    "allow_networks": [f"{WORLD}/32"],
                    "max_bytes": 2_000_000,
                    "max_pixels": 4_000_000,
                    "max_total_bytes": 6_000_000,
                    "timeout_s": 1.5,
                    "connect_timeout_s": 0.7,
                    "max_count": 4,
                },
                "logging": {"access": False},
            }
        )
        app = create_app(settings, resolver)
        server = ThreadServer(app)
        port = server.start()
        stack.callback(server.stop)
        gateway = LiveGateway(server, app.state.gateway, port)
        stack.callback(gateway.client.close)
        yield Scene(gateway, engine, world, victim, resolver)


def test_the_world_is_reachable(scene: Scene) -> None:
    """The control: what follows is refused for the attack, not for the setting."""
    scene.world.pages["/good.png"] = response(make_image())
    assert scene.gateway.show(scene.world.url("/good.png")).status_code == 200


SPELLINGS = [
    "http://127.0.0.1:{port}/secret.png",
    "http://localhost:{port}/secret.png",
    "http://LOCALHOST:{port}/secret.png",
    "http://localhost.:{port}/secret.png",
    "http://127.1:{port}/secret.png",
    "http://127.0.1:{port}/secret.png",
    "http://2130706433:{port}/secret.png",
    "http://0x7f000001:{port}/secret.png",
    "http://0x7f.0.0.1:{port}/secret.png",
    "http://0x7f.1:{port}/secret.png",
    "http://0177.0.0.1:{port}/secret.png",
    "http://017700000001:{port}/secret.png",
    "http://127.0.0.01:{port}/secret.png",
    "http://127.000.000.001:{port}/secret.png",
    "http://0.0.0.0:{port}/secret.png",
    "http://0:{port}/secret.png",
    "http://[::1]:{port}/secret.png",
    "http://[::]:{port}/secret.png",
    "http://[::ffff:127.0.0.1]:{port}/secret.png",
    "http://[::ffff:7f00:1]:{port}/secret.png",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/secret.png",
    "http://[::127.0.0.1]:{port}/secret.png",
    "http://[64:ff9b::127.0.0.1]:{port}/secret.png",
    "http://[64:ff9b:1::127.0.0.1]:{port}/secret.png",
    "http://[2002:7f00:1::]:{port}/secret.png",
    "http://[2001:0:0:0:0:0:80ff:fffe]:{port}/secret.png",
    "http://[::ffff:0:127.0.0.1]:{port}/secret.png",
    "http://[fe80::5efe:127.0.0.1]:{port}/secret.png",
    "http://[::1%25lo]:{port}/secret.png",
    "http://①②⑦.⓪.⓪.①:{port}/secret.png",
    "http://127。0。0。1:{port}/secret.png",
    "http://user:pass@127.0.0.1:{port}/secret.png",
    "http://127.0.0.2@127.0.0.1:{port}/secret.png",
    "http://127.0.0.2%40127.0.0.1:{port}/secret.png",
    "http://127.0.0.2\\@127.0.0.1:{port}/secret.png",
    "http://127.0.0.1:{port}\\@127.0.0.2/secret.png",
    "http:\\\\127.0.0.1:{port}\\secret.png",
    "http:/127.0.0.1:{port}/secret.png",
    "http:127.0.0.1:{port}/secret.png",
    "http:///127.0.0.1:{port}/secret.png",
    "http://127.0.0.2#@127.0.0.1:{port}/secret.png",
    "http://127.0.0.2?@127.0.0.1:{port}/secret.png",
    "http://127.0.0.2\t@127.0.0.1:{port}/secret.png",
    "http://127.0.0.1:{port}\r\nHost: a/secret.png",
    " http://127.0.0.1:{port}/secret.png",
    "//127.0.0.1:{port}/secret.png",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "ftp://127.0.0.1:{port}/secret.png",
    "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/x",
    "unix:/var/run/docker.sock",
    "jar:http://127.0.0.1:{port}/!/",
    "javascript:alert(1)",
    "blob:http://127.0.0.1/x",
    "http+unix://%2Fvar%2Frun/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://168.63.129.16/metadata",
    "http://192.0.0.192/opc/v2/",
    "http://10.0.0.1/x.png",
    "http://172.16.0.1/x.png",
    "http://192.168.0.1/x.png",
    "http://100.64.0.1/x.png",
    "http://198.18.0.1/x.png",
    "http://224.0.0.1/x.png",
    "http://255.255.255.255/x.png",
    "http://[ff02::1]/x.png",
    "http://[fc00::1]/x.png",
    "http://[fec0::1]/x.png",
    "http://8.8.8.8:22/x.png",
    "http://8.8.8.8:0/x.png",
    "http://8.8.8.8:65536/x.png",
    "http://8.8.8.8:-1/x.png",
    "http://[::1/x.png",
    "http://a..b/x.png",
    "http://-a.example/x.png",
    "http://" + "a" * 300 + ".example/x.png",
    "http://example.org/" + "a" * 10_000,
    "http://",
    "",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(scene: Scene, spelling: str) -> None:
    scene.refused(spelling.replace("{port}", str(scene.victim.port)))


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"]],
        [["127.0.0.2", "127.0.0.1"]],  # one good address does not excuse a bad one
        [["::ffff:127.0.0.1"]],
        [["169.254.169.254"]],
        [["64:ff9b::a9fe:a9fe"]],
        [["10.1.2.3"], ["127.0.0.2"]],
    ],
)
def test_names_that_resolve_to_private_addresses(scene: Scene, answers: list[list[str]]) -> None:
    scene.resolver.names["evil.example"] = answers
    code = scene.refused(f"http://evil.example:{scene.victim.port}/secret.png")
    assert code == "image_host_refused"


def test_rebinding(scene: Scene) -> None:
    """The first look-up is good, any later one is the victim: there must be no later one."""
    scene.world.pages["/good.png"] = response(make_image())
    scene.resolver.names["rebind.example"] = [[WORLD], [VICTIM], [VICTIM]]
    scene.resolver.lookups.clear()
    answer = scene.gateway.show(f"http://rebind.example:{scene.world.port}/good.png")
    assert answer.status_code == 200
    assert scene.resolver.lookups == ["rebind.example"]
    assert scene.world.requests[-1][1]["host"] == f"rebind.example:{scene.world.port}"
    assert scene.victim.connections == 0


def redirect(to: str, status: str = "302 Found") -> bytes:
    return response(b"", f"location: {to}", status=status)


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/secret.png",
        "//127.0.0.1:{port}/secret.png",
        "http://[::ffff:127.0.0.1]:{port}/secret.png",
        "http://0x7f.1:{port}/secret.png",
    ],
)
def test_redirects_to_the_victim(scene: Scene, status: str, target: str) -> None:
    to = target.replace("{port}", str(scene.victim.port))
    scene.world.pages["/away"] = redirect(to, status)
    scene.refused(scene.world.url("/away"))


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "data:image/png;base64,aaaa", "gopher://127.0.0.1/", "\\\\x"]
)
def test_redirects_to_other_schemes(scene: Scene, target: str) -> None:
    scene.world.pages["/away"] = redirect(target)
    scene.refused(scene.world.url("/away"))


def test_redirect_chains(scene: Scene) -> None:
    scene.world.pages["/good.png"] = response(make_image())
    for step in range(6):
        to = f"/hop{step - 1}" if step else "/good.png"
        scene.world.pages[f"/hop{step}"] = redirect(to)
    assert scene.gateway.show(scene.world.url("/hop4")).status_code == 200
    scene.refused(scene.world.url("/hop5"))
    scene.world.pages["/loop"] = redirect("/loop")
    scene.refused(scene.world.url("/loop"))
    scene.world.pages["/hop-then-away"] = redirect("/away")
    scene.world.pages["/away"] = redirect(scene.victim.url("/secret.png"))
    scene.refused(scene.world.url("/hop-then-away"))
    scene.world.pages["/nowhere"] = response(b"", status="302 Found")
    scene.refused(scene.world.url("/nowhere"))


def test_redirect_by_rebinding(scene: Scene) -> None:
    """A redirect is resolved and checked anew."""
    scene.resolver.names["hop.example"] = [[WORLD], [VICTIM]]
    scene.world.pages["/again"] = redirect(f"http://hop.example:{scene.victim.port}/secret.png")
    code = scene.refused(f"http://hop.example:{scene.world.port}/again")
    assert code == "image_host_refused"


# ---------------------------------------------------------------------- bodies


async def endless(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    block = b"\x89PNG" * 16384
    while True:
        writer.write(block)
        await writer.drain()


async def endless_chunks(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
        await writer.drain()


async def drip(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_head(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silence(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(300)


async def huge_head(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(10_000):
        writer.write(b"x-more: " + b"a" * 1000 + b"\r\n")
        await writer.drain()


async def abort(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc")
    await writer.drain()
    writer.transport.abort()


async def early_hints(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 1000)
        await writer.drain()


PNG = make_image()
BODIES = {
    "endless": endless,
    "endless chunks": endless_chunks,
    "drip": drip,
    "dripping head": drip_head,
    "silence": silence,
    "huge head": huge_head,
    "abort": abort,
    "endless early hints": early_hints,
    "length too long": response(PNG, length=len(PNG) + 1000),
    "length too short": response(PNG, length=len(PNG) - 40),
    "length huge": response(PNG, length=10**15),
    "length negative": response(PNG, length=-1),
    "two lengths": response(PNG, "content-length: 3"),
    "length and chunked": response(PNG, "transfer-encoding: chunked"),
    "bad chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "gzip": response(zlib.compress(PNG), "content-encoding: gzip"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": PNG,
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "empty": response(b""),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "unauthorized": response(b"", "www-authenticate: Basic", status="401 U"),
    "error": response(b"x", status="500 E"),
    "not modified": response(b"", status="304 N"),
    "partial": response(PNG[:40], "content-range: bytes 0-39/100", status="206 P"),
    "html": response(b"<html><body>hello</body></html>", "content-type: image/png"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(scene: Scene, name: str) -> None:
    scene.world.pages["/bad"] = BODIES[name]
    scene.refused(scene.world.url("/bad"), within=4)


def test_slow_hosts_hold_nobody_up(scene: Scene) -> None:
    """Thirty slow images in flight, and a plain request is answered as ever."""
    scene.world.pages["/silence"] = silence
    url = scene.world.url("/silence")
    threads = [
        threading.Thread(
            target=lambda: httpx.post(
                f"{scene.gateway.url}/v1/chat/completions",
                json={
                    "model": "vora-test",
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "image_url", "image_url": {"url": url}}],
                        }
                    ],
                },
                timeout=30,
            )
        )
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert scene.gateway.chat().status_code == 200
    assert time.monotonic() - began < 1.4, "it waited for the slow ones"
    for thread in threads:
        thread.join()


# ---------------------------------------------------------------------- image files


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(width: int, height: int, data: bytes, *before: bytes, depth: int = 8) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    end = png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + png_chunk(b"IDAT", data) + end


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + (10).to_bytes(4, "little") + b"\x02\x00\x00\x00" + size
    return b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated a thousand times."""
    plain = make_image(640, 640, kind="JPEG", progressive=True)
    last = plain.rindex(b"\xff\xda")
    return plain[:last] + plain[last:-2] * 1000 + b"\xff\xd9"


JPEG = make_image(kind="JPEG")
GIF = make_image(kind="GIF")
NOISE = bytes(range(256)) * 40
FILES = {
    "zero sized": png(0, 0, zlib.compress(b"")),
    "one pixel": make_image(1, 1),
    "line": make_image(3000, 2),
    "bomb": png(50_000, 50_000, zlib.compress(b"\0" * 1_000_000, 9)),
    "bomb of maximal size": png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0" * 1000)),
    "solid 100 megapixels": make_image(10_000, 10_000, kind="PNG", mode="1", colour=0),
    "webp canvas bomb": webp_header(16_384, 16_384) + b"\0" * 100,
    "webp header only": webp_header(64, 64),
    "bmp bomb": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif bomb": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + GIF[10:],
    "gif frame beyond its canvas": GIF[:6] + struct.pack("<HH", 2, 2) + GIF[10:],
    "tiff that points to itself": b"II*\x00\x08\x00\x00\x00" + b"\x00\x00\x08\x00\x00\x00",
    "tiff with a far offset": b"II*\x00\xff\xff\xff\x7f" + b"\0" * 100,
    "tiff of endless strips": b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\x11\x01\x04\x00" * 20_000,
    "text bomb": png(
        8,
        8,
        zlib.compress(b"\0" * 200),
        png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 100_000_000, 9)),
    ),
    "profile bomb": png(
        8, 8, b"", png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"a" * 100_000_000, 9))
    ),
    "too little data": png(64, 64, zlib.compress(b"\0" * 10)),
    "bad checksum": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
    "truncated PNG": PNG[:-30],
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "truncated GIF": GIF[:20],
    "truncated WebP": make_image(kind="WEBP")[:40],
    "JPEG of endless scans": many_scans(),
    "JPEG head alone": JPEG[:4],
    "noise as JPEG": b"\xff\xd8\xff" + NOISE,
    "noise as PNG": b"\x89PNG\r\n\x1a\n" + NOISE,
    "noise as GIF": b"GIF89a" + NOISE,
    "noise as TIFF": b"MM\x00*" + NOISE,
    "noise as BMP": b"BM" + NOISE,
    "noise as WebP": b"RIFF\x00\x10\x00\x00WEBPVP8 " + NOISE,
    "PDF": b"%PDF-1.7\n" + NOISE,
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "ICO": b"\x00\x00\x01\x00" + NOISE,
    "PPM": b"P6\n100000 100000\n255\n" + NOISE,
    "zip": b"PK\x03\x04" + NOISE,
    "pickle": b"\x80\x04\x95" + NOISE,
    "numpy": b"\x93NUMPY" + NOISE,
    "HTML with an image inside": b"<html>" + PNG,
}


#: Odd, but harmless: browsers show the one, and the other's text is never expanded.
HARMLESS = frozenset(("gif frame beyond its canvas", "text bomb"))


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("name", FILES)
def test_files(scene: Scene, name: str) -> None:
    content = FILES[name]
    if name in HARMLESS:
        assert scene.gateway.show(data_url(content)).status_code == 200
    else:
        scene.refused(data_url(content))


def test_polyglots_lose_what_trails_them(scene: Scene) -> None:
    """What comes after the image's end never reaches the engine."""
    for content in (PNG + b"<script>evil()</script>", JPEG + b"PK\x03\x04evil"):
        assert scene.gateway.show(data_url(content)).status_code == 200
        url = scene.engine.seen[-1]["messages"][0]["content"][1]["image_url"]["url"]
        assert b"evil" not in base64.b64decode(url.split(",", 1)[1])


DATA_URLS = [
    "data:",
    "data:,hello",
    "data:image/png,abc",
    "data:image/png;base64",
    "data:image/png;base64,",
    "data:image/png;base64,!!!!",
    "data:image/png;base64,AAAA=AAAA",
    "data:image/png;base64," + "A" * 4_000_000,
    "data:text/html;base64,PGh0bWw+",
    "data:" + "a" * 5000 + ";base64,AAAA",
    "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
]


@pytest.mark.parametrize("url", DATA_URLS, ids=range(len(DATA_URLS)))
def test_data_urls(scene: Scene, url: str) -> None:
    scene.refused(url)


def test_limits_are_read_before_anything_is_fetched(scene: Scene) -> None:
    before = scene.world.connections
    assert scene.refused(*[scene.world.url("/good.png")] * 5) == "too_many_images"
    scene.refused(scene.world.url("/good.png"), "file:///etc/passwd")
    assert scene.world.connections == before


def test_the_same_image_is_fetched_once(scene: Scene) -> None:
    scene.world.pages["/good.png"] = response(make_image())
    before = scene.world.connections
    assert scene.gateway.show(*[scene.world.url("/good.png")] * 4).status_code == 200
    assert scene.world.connections == before + 1


def test_total_bytes(scene: Scene) -> None:
    noise = Image.effect_noise((1300, 1300), 100)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    content = buffer.getvalue()
    assert 1_500_000 < len(content) < 2_000_000
    urls = [data_url(content + bytes([index])) for index in range(4)]
    assert scene.refused(*urls) == "image_too_large"


def test_memory_stays_bounded(scene: Scene) -> None:
    """This process holds the gateway, the fakes and all tests together: what it gains counts."""
    before = psutil.Process().memory_info().rss
    for name in ("bomb", "text bomb", "JPEG of endless scans", "webp canvas bomb"):
        for _ in range(5):
            scene.gateway.show(data_url(FILES[name]))
    assert psutil.Process().memory_info().rss - before < 400 * 2**20


def test_nobody_is_held_and_nothing_was_reached(scene: Scene) -> None:
    """Runs last in this module."""
    assert scene.gateway.chat().status_code == 200
    assert scene.victim.connections == 0
    assert scene.gateway.state.queue.in_flight == 0
    assert scene.gateway.state.bodies.used == 0
    assert not scene.gateway.state.active


def test_https_keeps_the_name_and_checks_the_certificate(
    engine: FakeEngine, start_gateway: Start
) -> None:
    """TLS to a host without a valid certificate fails closed."""
    listener = socket.create_server((WORLD, 0))
    port = listener.getsockname()[1]
    hellos: list[bytes] = []

    def accept() -> None:
        connection, _ = listener.accept()
        hellos.append(connection.recv(4096))
        connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    gateway = start_gateway(
        engine.url,
        resolver=FakeResolver(tls_example=[[WORLD]]),
        images={"allow_networks": [f"{WORLD}/32"], "timeout_s": 3},
    )
    assert gateway.show(f"https://tls.example:{port}/x.png").status_code == 400
    thread.join(5)
    listener.close()
    assert b"tls.example" in hellos[0], "the server name indication is the URL's"
