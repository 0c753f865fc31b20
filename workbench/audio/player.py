"""A clip inside a page."""

from __future__ import annotations

import base64
import io

from workbench.audio.decode import Wave, write_flac


def flac_bytes(wave: Wave) -> bytes:
    """A 16 kHz mono wave [samples] as FLAC: what every browser plays, without loss and about half of a WAV file."""
    buffer = io.BytesIO()
    write_flac(buffer, wave)
    return buffer.getvalue()


def player(flac: bytes) -> str:
    """An `<audio>` element that holds the clip itself."""
    return f'<audio controls preload="none" src="data:audio/flac;base64,{base64.b64encode(flac).decode()}"></audio>'
