"""Ways to damage a file: byte by byte, or inside its format so that the damage gets far into a reader."""

import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

NUMBERS = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
TOKENS = [
    b"\x00", b"\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b[31m", b"[red]", b"NaN", b"1e999", b"null",
    b"9" * 5000, b"[" * 70, b"{}", b'"\\ud800"', b'"\\u0000"', b"../../etc/passwd", b"/dev/zero", b"-1", b"true", b",",
    b'"',
]  # fmt: skip
TEXTS = [
    "", "x", "\x1b[31mred", "[red]x[/]", "\ud800", "\0", "../../etc/passwd", "/dev/zero", "https://x.org/a", "all",
    "nan", "train", "1", "é" * 50, "a" * 5000, "\u202e", "policy", "rce", "inf",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 2**31, 2**53, 2**63, -(2**63) - 1, 10**30, 1e308, float("nan"),
    float("inf"), [], {}, [[]], [None], [1, 2], [1, 1], [True], ["x"], {"x": 1}, {"": []}, [1.5], *TEXTS,
]  # fmt: skip
_RAW = [
    "1e999",
    "-1e999",
    "9" * 5000,
    "-0",
    "1E400",
    "[" * 200 + "]" * 200,
    '"\\ud800"',
    '{"a":1,"a":2}',
    "[1,]",
    "nul",
]


def damaged_bytes(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A few changes anywhere."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(made) + 1)
        span = random.choice((1, 1, 2, 4, 8, 30, 300))
        match random.randrange(8):
            case 0 if made:
                made[at % len(made)] ^= 1 << random.randrange(8)
            case 1:
                made[at : at + span] = b""
            case 2:
                made[at:at] = made[at : at + span]
            case 3:
                made[at:at] = random.choice(TOKENS)
            case 4:
                size = random.choice((1, 2, 4, 8))
                number = random.choice(NUMBERS) % 256**size
                made[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
            case 5:
                other = random.choice(others)
                begin = random.randrange(len(other) + 1)
                made[at : at + span] = other[begin : begin + span]
            case 6:
                made[at : at + span] = random.randbytes(span)
            case _ if random.random() < 0.2:
                del made[at:]
    return bytes(made)


# --- JSON -------------------------------------------------------------------------------------------------


def damaged_json(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A JSON value with parts replaced; at times with its bytes damaged."""
    if random.random() < 0.3:
        return damaged_bytes(random, content, others)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return damaged_bytes(random, content, others)
    return _dumped(random, _changed(random, value))


def damaged_lines(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """JSON lines with one or two of them damaged, repeated or removed."""
    if random.random() < 0.2:
        return damaged_bytes(random, content, others)
    lines = content.splitlines(keepends=True) or [b""]
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(lines))
        match random.randrange(8):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(at, lines[random.randrange(len(lines))])
            case 2:
                lines[at] = damaged_bytes(random, lines[at], others)
            case _:
                lines[at] = damaged_json(random, lines[at].strip(), others) + b"\n"
    return b"".join(lines)


def _dumped(random: Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.1:
        places = [found.span() for found in re.finditer(r'(?<=[:\[,] )("[^"\\]*"|-?\d[\d.e+-]*|null|true)', text)]
        if places:
            begin, end = random.choice(places)
            text = text[:begin] + random.choice(_RAW) + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _changed(random: Random, value: Any) -> Any:
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _changed_once(random, value)
    return value


def _changed_once(random: Random, value: Any) -> Any:
    """A copy with one value in it replaced, renamed, repeated or removed."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.12:
        return _instead(random, value)
    if isinstance(value, list):
        made: Any = list(value)
        place: Any = random.randrange(len(made))
    else:
        made = dict(value)
        place = random.choice(list(made))
    match random.randrange(10):
        case 0:
            del made[place]
        case 1 if isinstance(made, dict):
            made[random.choice(TEXTS + list(made))] = made.pop(place)
        case 1:
            made.insert(place, random.choice(made))
        case 2:
            made[place] = _instead(random, made[place])
        case _:
            made[place] = _changed_once(random, made[place])
    return made


def _instead(random: Random, value: Any) -> Any:
    match random.randrange(6):
        case 0 if isinstance(value, int | float):
            return value + random.choice((-1, 1, 2**40) if abs(value) > 2**60 else (-1, 1, 0.5, 2**40))
        case 1:
            return [value]
        case 2:
            return str(value)[:100]
        case 3 if isinstance(value, str):
            return value + random.choice(TEXTS)
        case _:
            return random.choice(VALUES)


# --- files of torch.save ----------------------------------------------------------------------------------

_OPCODES = [
    b"(", b")", b"}", b"]", b"]q\x01a", b"0", b"2", b"1", b"e", b"u", b"s", b"a", b"t", b"\x85", b"\x86", b"\x87", b"R",
    b"b", b"\x81", b"\x92", b"Q", b"N", b"\x88", b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"G\x7f\xf8" + bytes(6),
    b"q\x00", b"h\x00", b"h\x01", b"r\xff\xff\xff\x7f", b"j\x01\x00\x00\x00", b"\x94", b"\x8f", b"\x90", b"\x91",
    b"X\xff\xff\xff\x7f", b"X\x01\x00\x00\x00a", b"\x8d" + b"\xff" * 8,
    b"\x8b\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 9,
    b"\x8e" + b"\x00" * 5 + b"\x01\x00\x00", b"\x96" + b"\x00" * 5 + b"\x01\x00\x00", b"\x97", b"cos\nsystem\n",
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"\x93", b"o",
    b"(ios\nsystem\n", b"\x8a\xff" + b"\x7f" * 255, b"\x95" + b"\xff" * 8, b"\x80\x05", b"\x82\x01", b"P1\n", b".",
]  # fmt: skip


def damaged_torch_file(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A file of torch.save: its bytes, or the content of its archive, which is packed again."""
    records = list(_unpacked(content))
    if not records or random.random() < 0.2:
        return damaged_bytes(random, content, others)
    pickles = [i for i, (name, _) in enumerate(records) if name.endswith("data.pkl")]
    for _ in range(random.choice((1, 1, 2))):
        at = random.choice(pickles) if pickles and random.random() < 0.8 else random.randrange(len(records))
        name, data = records[at]
        match random.randrange(12):
            case 0:
                records[at] = (random.choice((name + "x", "../" + name, "/etc/x", "", name.upper())), data)
            case 1 if len(records) > 1:
                del records[at]
                break
            case 2:
                records.append((name, data))
            case 3:
                records[at] = (name, data[: random.randrange(len(data) + 1)])
            case 4 | 5:
                records[at] = (name, damaged_bytes(random, data, [data]))
            case _:
                records[at] = (name, _damaged_pickle(random, data) if at in pickles else random.randbytes(len(data)))
    return packed(records, compressed=random.random() < 0.02)


@lru_cache(4096)
def _unpacked(content: bytes) -> tuple[tuple[str, bytes], ...]:
    """Names and contents of an archive's records; none if it is not an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return tuple((info.filename, archive.read(info)) for info in archive.infolist()[:40])
    except Exception:  # noqa: BLE001 - already damaged
        return ()


def packed(records: Sequence[tuple[str, bytes]], compressed: bool = False) -> bytes:
    """An archive of these records, with any names; faster than `zipfile`."""
    body, directory = bytearray(), bytearray()
    for name, data in records:
        written = zlib.compress(data, wbits=-15) if compressed else data
        encoded = name.encode("utf-8", "replace")
        sizes = zlib.crc32(data), len(written), len(data), len(encoded), 0
        header = struct.pack("<HHHHHIIIHH", 20, 0x800, 8 * compressed, 0, 0, *sizes)  # 0x800: the name is in UTF-8
        directory += b"PK\1\2\x14\0" + header + bytes(10) + struct.pack("<I", len(body)) + encoded
        body += b"PK\3\4" + header + encoded + written
    count = min(len(records), 2**16 - 1)  # which no reader needs
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + b"PK\5\6" + end)


@lru_cache(4096)
def _opcodes_of(data: bytes) -> tuple[bytes, ...]:
    """A pickle's opcodes with their arguments; none if it is already damaged."""
    try:
        places = [place for *_, place in pickletools.genops(data)]
    except Exception:  # noqa: BLE001
        return ()
    return tuple(data[begin:end] for begin, end in zip(places, [*places[1:], len(data)], strict=True))


def _damaged_pickle(random: Random, data: bytes) -> bytes:
    """A pickle with opcodes removed, repeated, swapped, inserted, or with another argument."""
    opcodes = list(_opcodes_of(data))
    for _ in range(random.choice((1, 1, 2, 3))):
        if not opcodes:
            return damaged_bytes(random, data, [data])
        at = random.randrange(len(opcodes))
        match random.randrange(7):
            case 0:
                del opcodes[at]
            case 1:
                opcodes.insert(at, random.choice(opcodes))
            case 2:
                other = random.randrange(len(opcodes))
                opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
            case 3:
                opcodes.insert(at, random.choice(_OPCODES))
            case 4:
                opcodes[at] = random.choice(_OPCODES)
            case 5 if len(opcodes[at]) > 1:
                size = len(opcodes[at]) - 1
                opcodes[at] = opcodes[at][:1] + (random.choice(NUMBERS) % 256**size).to_bytes(size, "little")
            case _:
                opcodes[at] = opcodes[at] * random.choice((2, 2, 100))
    return b"".join(opcodes)


def damaged_safetensors(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A file of safetensors: its header, with the right length in front, or its bytes."""
    size = int.from_bytes(content[:8], "little")
    if random.random() < 0.3 or size > len(content):
        return damaged_bytes(random, content, others)
    head = damaged_json(random, content[8 : 8 + size], others)
    return len(head).to_bytes(8, "little") + head + content[8 + size :]


# --- images -----------------------------------------------------------------------------------------------


def damaged_image(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """An image; for a PNG, at times the content of its chunks, with correct check sums."""
    if content.startswith(b"\x89PNG\r\n\x1a\n") and random.random() < 0.8:
        return _damaged_png(random, content, others)
    return damaged_bytes(random, content, others)


def _damaged_png(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    chunks, at = [], 8
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    if not chunks:
        return damaged_bytes(random, content, others)
    chunk = random.choice(chunks)
    match random.randrange(7):
        case 0:
            kinds = (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"fcTL", b"fdAT")
            chunk[0] = random.choice(kinds)
        case 1:
            chunks.insert(random.randrange(len(chunks)), [*chunk])
        case 2:
            chunk[1] = _zeros(random.choice((10, 10**5, 3 * 10**7)))
        case 3:
            chunks.insert(1, [b"zTXt", b"k\0\0" + _zeros(random.choice((10, 10**5, 3 * 10**7)))])
        case 4 if chunks[0][0] == b"IHDR":
            sides = [random.choice((0, 1, 7, 200, 40000, 2**31 - 1)) for _ in range(2)]
            chunks[0][1] = struct.pack(">II", *sides) + chunks[0][1][8:]
        case _:
            chunk[1] = damaged_bytes(random, chunk[1], [chunk[1]])
    made = [content[:8]]
    for kind, data in chunks:
        made.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(made)


@lru_cache
def _zeros(count: int) -> bytes:
    """This many zero bytes, compressed."""
    return zlib.compress(bytes(count))
