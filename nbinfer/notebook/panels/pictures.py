"""The images of a prompt: chosen, dropped or pasted; checked at once, and shown small."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets

from ... import images
from ...engines import registry
from ...errors import ConfigurationError, brief_traceback
from ...messages import ImagePart, TextPart
from ..engine_rows import short
from ..text import format_bytes
from .form import cannot
from .parts import TEXT, WIDE, button, close, failed

__all__ = ["Picture", "Pictures", "content"]

MOST = 16
# What a browser has made; whatever else it says is not shown.
_THUMBNAIL = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]{1,60000}")


@dataclass(frozen=True)
class Picture:
    """An image of a prompt.

    Attributes
    ----------
    name : str
        Its path, or the file's name where it came from a browser.
    source : bytes or Path
        What is sent.
    """

    name: str
    source: bytes | Path
    thumbnail: str = ""

    def html(self) -> str:
        """It as a reader sees it: small, with its name and size."""
        size = self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)
        name = html.escape(short(self.name))
        shown = f'<img alt="" src="{self.thumbnail}"><br>' if self.thumbnail else ""
        return f'<div style="{TEXT};font-size:90%">{shown}{name} · {format_bytes(size)}</div>'


def content(text: str, pictures: Sequence[Picture]) -> str | list[ImagePart | TextPart]:
    """The content of a message: the images, then the text, as ``--image`` has them."""
    if not pictures:
        return text
    return [*(ImagePart(picture.source) for picture in pictures), TextPart(text)]


class Pictures(ipywidgets.VBox):  # type: ignore[misc]
    """A button that adds images, those that are there, and what was wrong with the last."""

    def __init__(self) -> None:
        self._pictures: tuple[Picture, ...] = ()
        self._missing = ""
        # The script acts on this one, in the browser; the other is there where it does not run.
        self.choose = button("Add images", "", lambda _: None)
        self.choose.add_class("nbinfer-images")
        self.upload = ipywidgets.FileUpload(
            accept="image/*",
            multiple=True,
            description="Add images",
            layout={"width": "auto", "align_self": "flex-start"},
        )
        self.upload.add_class("nbinfer-upload")
        self.upload.observe(self._uploaded, "value")
        self.shown = ipywidgets.HBox(layout={"flex_flow": "row wrap"})
        self.wrong = ipywidgets.HTML()
        buttons = ipywidgets.HBox([self.choose, self.upload])
        super().__init__([buttons, self.wrong, self.shown], layout=WIDE)
        self.suit("")

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that the next prompt has, in order."""
        return self._pictures

    def suit(self, engine: str) -> None:
        """Turn it off, with the reason, where an engine reads no images."""
        reads = not engine or "vision" in registry.spec(engine).capabilities.features
        able = registry.supporting("vision", of="features")
        self._missing = "" if reads else cannot(engine, "images", able)
        for one in (self.choose, self.upload):
            one.disabled = not reads
            one.tooltip = self._missing or (
                "Images for the next prompt: choose them, or drop or paste them on the prompt"
            )

    def check(self) -> None:
        """Whether they can be sent.

        Raises
        ------
        ConfigurationError
            For images to an engine that reads none.
        """
        if self._pictures and self._missing:
            raise ConfigurationError(self._missing, hint="remove them, or choose another engine")

    def add(self, source: str | os.PathLike[str] | bytes, name: str = "", small: str = "") -> None:
        """Add an image: a file's path, or what is in it.

        What is wrong with it is said below the button, and nothing is added.
        """
        picture = source if isinstance(source, bytes) else Path(source).expanduser()
        named = name or (str(source) if isinstance(picture, Path) else "image")
        try:
            images.data_url(picture)
            if len(self._pictures) >= MOST:
                raise ConfigurationError(f"a prompt has at most {MOST} images here")
        except ConfigurationError as error:
            self._fail(f"{short(named)}: " + "\n".join(brief_traceback(error)))
            return
        self.wrong.value = ""
        thumbnail = small if _THUMBNAIL.fullmatch(small) else ""
        self._show([*self._pictures, Picture(named, picture, thumbnail)])

    def given(self, said: dict[str, Any], data: bytes | None) -> None:
        """Take what a browser has of an image: its bytes, or why it did not send them."""
        name = str(said.get("name", ""))[:500]
        if data is not None:
            self.add(data, Path(name).name, str(said.get("thumbnail", "")))
        elif str(said.get("type", "")).startswith("image/"):
            size = format_bytes(said.get("size"))
            self._fail(f"{short(name)} has {size}: more than a browser can hand over at once")
        else:
            self._fail(f"{short(name)} is no image but {short(str(said.get('type', '')))}")

    def clear(self) -> None:
        """Take them all away."""
        self._show(())

    def _fail(self, text: str) -> None:
        self.wrong.value = failed(text)

    def _uploaded(self, _change: Any) -> None:
        files = self.upload.value
        if files:
            for file in files:
                self.add(bytes(file["content"]), Path(file["name"]).name)
            self.upload.value = ()

    def _show(self, pictures: Iterable[Picture]) -> None:
        self._pictures = tuple(pictures)
        before = self.shown.children
        self.shown.children = [self._one(picture) for picture in self._pictures]
        for part in before:
            close(part)

    def _one(self, picture: Picture) -> Any:
        def remove(_button: Any) -> None:
            self._show(one for one in self._pictures if one is not picture)

        name = short(picture.name)
        return ipywidgets.VBox(
            [ipywidgets.HTML(picture.html()), button("Remove", f"remove {name}", remove)]
        )
