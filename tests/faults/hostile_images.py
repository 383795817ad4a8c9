"""Image files that mean harm: what claims to be huge, what unpacks to much, what is cut off, what is something else."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes, *, length: int | None = None, checksum: int | None = None) -> bytes:
    """Of a PNG file."""
    told = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body) if length is None else length) + kind + body + struct.pack(">I", told)


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2, data: bytes = bytes(100)) -> bytes:
    """A file with these chunks between header and pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return _PNG + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (64, 64), mode: str = "RGB", **options: Any) -> bytes:
    """An honest file of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _text_bomb(kind: bytes) -> bytes:
    text = zlib.compress(bytes(2**20 - 1), 9)
    head = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    return chunk(kind, head + text)


def _jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _scans(count: int, side: int = 4000) -> bytes:
    """A progressive picture of one colour whose first scan is sent again and again: 4 bytes of data each."""
    data = saved("JPEG", (8, 8), progressive=True)
    start, table = data.index(b"\xff\xda"), bytearray(data)
    at = data.index(b"\xff\xc2")
    table[at + 5 : at + 9] = struct.pack(">HH", side, side)
    end = data.index(b"\xff\xda", start + 2)
    return bytes(table[:start]) + data[start:end] * count + b"\xff\xd9"


def _exif(body: bytes) -> bytes:
    payload = b"Exif\0\0" + body
    data = saved("JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def _webp(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", width - 1)[:3]
    body += struct.pack("<I", height - 1)[:3] + b"VP8L" + struct.pack("<I", 10) + b"\x2f" + bytes(9)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bombs() -> dict[str, bytes]:
    """Files of at most 2 MiB, that claim or unpack to much more."""
    rows = zlib.compress(bytes(40_000_000), 9)
    return {
        "PNG of 2^31 - 1 pixels a side": png(2**31 - 1, 2**31 - 1),
        "PNG of 20,000 pixels a side": png(20_000, 20_000),
        "PNG of one row": png(2**31 - 1, 1),
        "PNG of one column": png(1, 2**31 - 1),
        "PNG of one bit a pixel": png(60_000, 60_000, depth=1, colour=0, data=bytes(10_000_000)),
        "PNG of 16 bits a channel": png(10_000, 10_000, depth=16, colour=6),
        "PNG with a profile that unpacks": png(8, 8, chunk(b"iCCP", b"k\0\0" + rows), data=bytes(200)),
        "PNG with a text that unpacks": png(8, 8, chunk(b"zTXt", b"k\0\0" + rows), data=bytes(200)),
        "PNG with 60 texts that unpack": png(8, 8, *[_text_bomb(b"zTXt")] * 60, data=bytes(200)),
        "PNG with 60 international texts": png(8, 8, *[_text_bomb(b"iTXt")] * 60, data=bytes(200)),
        "PNG with 60 profiles": png(8, 8, *[_text_bomb(b"iCCP")] * 60, data=bytes(200)),
        "PNG of 150,000 chunks": png(8, 8, chunk(b"aaAa", b"") * 150_000, data=bytes(200)),
        "JPEG of 65,500 pixels a side": _jpeg_of_size(65_500, 65_500),
        "JPEG of 5,000 scans": _scans(5000),
        "JPEG of 400,000 segments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 400_000 + saved("JPEG")[2:],
        "JPEG of fill bytes": b"\xff\xd8" + b"\xff" * 2_000_000 + saved("JPEG")[2:],
        "WebP of 16,384 pixels a side": _webp(16_384, 16_384),
        "WebP of 2^24 pixels a side": _webp(2**24, 2**24),
    }


def broken() -> dict[str, bytes]:
    """Cut off, damaged, or against their format."""
    files = {kind: saved(kind) for kind in ("PNG", "JPEG", "WEBP")}
    cut = {
        f"{kind} cut at {share}": data[: int(len(data) * share)]
        for kind, data in files.items()
        for share in (0.02, 0.4, 0.95)
    }
    return cut | {
        "PNG without pixels": _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        "PNG of no size": png(0, 0),
        "PNG of fewer pixels than told": png(60, 60, data=bytes(10)),
        "PNG with a chunk beyond its end": _PNG + chunk(b"IHDR", b"", length=2**31 - 1),
        "PNG with a wrong checksum": _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0), checksum=1),
        "PNG of a depth that is none": png(8, 8, depth=7),
        "PNG of a colour that is none": png(8, 8, colour=9),
        "PNG whose pixels are no stream": png(8, 8, chunk(b"IDAT", b"not zlib")),
        "PNG that moves": saved("PNG", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]),
        "JPEG without tables": files["JPEG"][:2] + files["JPEG"][files["JPEG"].index(b"\xff\xc0") :],
        "JPEG of twelve bits": files["JPEG"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "JPEG of five components": files["JPEG"].replace(b"\x08\x00\x40\x00\x40\x03", b"\x08\x00\x40\x00\x40\x05"),
        "JPEG of no size": _jpeg_of_size(0, 0),
        "WebP that is longer than told": files["WEBP"][:4] + struct.pack("<I", 2**32 - 1) + files["WEBP"][8:40],
        "WebP that moves": saved("WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]),
    }


def something_else() -> dict[str, bytes]:
    """Formats that Pillow knows and this server does not open, and files that are no images."""
    named: dict[str, bytes] = {
        kind: saved(kind, (32, 32)) for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "EPS", "TGA", "PCX", "ICNS", "DDS")
    }
    named["SGI"], named["JPEG 2000"] = saved("SGI"), b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100)
    named["PSD"] = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 60_000, 60_000, 8, 3) + bytes(100)
    named["AVIF"] = b"\0\0\0\x20ftypavif" + bytes(200)
    named["SVG"] = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    named["PDF"], named["zip"] = b"%PDF-1.7\n" + bytes(100), b"PK\3\4" + bytes(100)
    named["a script"] = b"#!/bin/sh\nexit 1\n"
    named["one byte"], named["nothing but a beginning"] = b"\xff", _PNG
    return named


def odd() -> dict[str, bytes]:
    """Strange, and maybe right: to be answered one way or the other."""
    loop = b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    turned = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"
    return {
        "EXIF that goes round": _exif(loop),
        "EXIF with no such orientation": _exif(turned),
        "EXIF of many entries": _exif(b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x02\0\xff\xff\xff\x7f\0\0\0\0" * 5000),
        "EXIF cut off": _exif(b"II*\0\x08\0"),
        "PNG with EXIF that goes round": png(8, 8, chunk(b"eXIf", loop), data=bytes(200)),
        "JPEG of four colours": saved("JPEG", mode="CMYK"),
        "JPEG of grey": saved("JPEG", mode="L"),
        "PNG of a palette that is missing": png(8, 8, colour=3, data=bytes(100)),
        "PNG of two headers": png(8, 8, chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)), data=bytes(300)),
    }
