"""MP4: H.264 by PyAV, whose wheels carry the encoder. The smallest; colours are close, not exact."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.schemas.errors import MissingExtraError

if TYPE_CHECKING:
    from attnlens.render.films import Pixels, Reel

NAME = "mp4"
SUFFIX = ".mp4"

_SAME_ANYWHERE = {"crf": "18", "preset": "medium", "x264-params": "threads=1:lookahead-threads=1"}


def check() -> None:
    """See that PyAV is there.

    Raises:
        MissingExtraError: it is not.
    """
    _av()


def encode(frames: Iterable[Pixels], reel: Reel) -> bytes:
    """An MP4. The encoder wants even sizes: an odd line at the edge is doubled."""
    av = _av()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = reel.recipe
        stream = container.add_stream("libx264", rate=Fraction(reel.fps).limit_denominator(1000))
        stream.width, stream.height = reel.width + reel.width % 2, reel.height + reel.height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = _SAME_ANYWHERE
        stream.thread_count = 1
        for pixels in frames:
            even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), "edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def recipe(data: bytes) -> str | None:
    """The recipe in an MP4."""
    if data[4:8] != b"ftyp":
        return None
    with _av().open(io.BytesIO(data)) as container:
        text: str | None = container.metadata.get("comment")
        return text


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("mp4 needs PyAV: pip install 'attnlens[video]', or choose gif or apng") from error
    return av
