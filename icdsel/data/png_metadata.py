"""Leaves out of PNG files the metadata that Pillow would unpack: texts and colour profiles, which nothing here uses.

Pillow rejects a file with more than 1 MB of unpacked metadata, although its picture is valid.
"""

import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LEFT_OUT = (b"zTXt", b"tEXt", b"iCCP")
_TEXT, _XMP = b"iTXt", b"XML:com.adobe.xmp\0"  # XMP may say how the picture is rotated
_MOST = 2**20  # bytes of XMP


def without_metadata(content: bytes) -> bytes:
    """The same file without chunks of texts and colour profiles, but with XMP that is not too large.

    Chunks are copied as they are. What is not a PNG, or behind a chunk that does not end within the file, is unchanged.
    """
    if not content.startswith(_SIGNATURE):
        return content
    kept: list[bytes] = []
    start = at = len(_SIGNATURE)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        kind = content[at + 4 : at + 8]
        if end > len(content) or kind == b"IEND":
            break
        if kind in _LEFT_OUT or (kind == _TEXT and not _is_small_xmp(content[at + 8 : end - 4])):
            kept.append(content[start:at])
            start = end
        at = end
    return b"".join([_SIGNATURE, *kept, content[start:]]) if kept else content


def _is_small_xmp(chunk: bytes) -> bool:
    """Whether a chunk of international text is XMP that takes at most `_MOST` bytes."""
    if not chunk.startswith(_XMP) or len(chunk) > _MOST:
        return False
    packed = chunk[len(_XMP) :]
    if packed[:1] != b"\1":
        return True
    parts = packed[2:].split(b"\0", 2)  # language, translated keyword, text
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(parts[-1], _MOST)
    except zlib.error:
        return True  # Pillow ignores it
    return not unpacking.unconsumed_tail
