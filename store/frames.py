"""What a zstd frame says of itself, looked at before it is decompressed."""

from __future__ import annotations

MAGIC = b"\x28\xb5\x2f\xfd"


def content_size(frame: bytes) -> int | None:
    """Bytes that a zstd frame says it holds, None if it does not say; RFC 8878, 3.1.1.1."""
    if len(frame) < 6 or not frame.startswith(MAGIC):
        return None
    flags = frame[4]
    single, width = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
    if flags >> 6 == 0:
        width = single
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    if not width or len(frame) < at + width:
        return None
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def check_size(frame: bytes, most: int) -> None:
    """Refuse a zstd frame that holds more than `most` bytes, or does not say.

    Raises:
        ValueError: it does.
    """
    size = content_size(frame)
    if size is None:
        raise ValueError("a zstd frame does not say how much it holds")
    if size > most:
        raise ValueError(f"a zstd frame holds {size} bytes where a chunk has no more than {most}")
