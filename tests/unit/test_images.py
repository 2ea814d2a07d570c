"""Where the bytes of an image part come from."""

from __future__ import annotations

import base64

import pytest

from nbinfer.worker.backends import _images
from nbinfer.worker.backends._images import image_bytes

from ..engines.pictures import served


def test_data_addresses():
    text = base64.b64encode(b"\x89PNG").decode()
    assert image_bytes(f"data:image/png;base64,{text}") == b"\x89PNG"
    assert image_bytes("DATA:image/svg+xml,%3Csvg%3E") == b"<svg>"
    with pytest.raises(ValueError, match="its base64 is damaged"):
        image_bytes("data:image/png;base64,!!!")
    with pytest.raises(ValueError, match="has no comma"):
        image_bytes("data:image/png;base64")


def test_web_addresses(monkeypatch):
    with served({"/a.png": b"picture"}) as address:
        assert image_bytes(f"{address}/a.png?width=3") == b"picture"
        with pytest.raises(ValueError, match=r"none\.png answers 404 Not Found") as caught:
            image_bytes(f"{address}/none.png?key=abc")
        assert "abc" not in str(caught.value)
        monkeypatch.setattr(_images, "MOST_BYTES", 3)
        with pytest.raises(ValueError, match="is larger than"):
            image_bytes(f"{address}/a.png")
    with pytest.raises(ValueError, match=r"a\.png cannot be fetched: ") as caught:
        image_bytes(f"{address}/a.png?key=abc")
    assert "abc" not in str(caught.value)
