"""Images for a Transformers model that sees: from a conversation's parts to tensors of a batch.

A row with images is answered by ``generate``. Its prompt holds the same token for whatever it
shows, so it neither leaves nor takes a prefix that other rows could begin from.
"""

from __future__ import annotations

import io
import threading

import torch
from transformers import AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from nbinfer.worker.backends._images import image_bytes
from nbinfer.worker.backends._passes import Abandoned

POLL_S = 0.05


def sees(config):
    """Whether a model of this config reads images beside text."""
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type, ())
    named = {named} if isinstance(named, str) else set(named)
    custom = getattr(config, "auto_map", None) or {}
    return "AutoModelForImageTextToText" in custom or not named.isdisjoint(
        config.architectures or ()
    )


def plain_places(config):
    """Whether a token's place is one number: some models count an image's rows and columns too."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return "mrope_section" not in rope


def split(messages):
    """The messages as templates take them, and the addresses of their images in order.

    Text parts alone become the text that every template takes.
    """
    addresses, plain = [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            found = [p["image_url"]["url"] for p in content if p["type"] == "image_url"]
            addresses += found
            if not found:
                content = "\n".join(p["text"] for p in content)
            else:
                content = [p if p["type"] == "text" else {"type": "image"} for p in content]
            message = {**message, "content": content}
        plain.append(message)
    return plain, addresses


class Vision:
    """The processor of a model that sees.

    Parameters
    ----------
    model : dict
        The load message.
    tokenizer
        The one that text is read with.
    """

    def __init__(self, model, tokenizer):
        self._problem = None
        try:
            self._processor = AutoProcessor.from_pretrained(
                model["path"],
                trust_remote_code=bool(model.get("trust_remote_code")),
                **(model.get("processor_kwargs") or {}),
            )
        except Exception as error:  # text is read without it
            self._problem = _what_to_do(" ".join(str(error).split()))
            return
        self._processor.tokenizer = tokenizer
        self._template = tokenizer.chat_template or self._processor.chat_template

    @property
    def wants_parts(self):
        """Whether the template takes a message's text only as a list of parts."""
        template = "" if self._problem else self._template or ""
        return "type" in template and "is string" not in template

    def read(self, messages, addresses, options, over):
        """The prompt, its tokens, and the tensors of its images.

        ``options`` are more arguments of the chat template; ``over()`` says whether nobody waits
        any more.

        Raises
        ------
        ValueError
            If an image cannot be had, or is none.
        """
        if self._problem:
            raise ValueError(self._problem)
        if not self._template:
            raise ValueError(
                "the model has no chat template, which says where an image stands: give one in "
                "ModelParams(chat_template=...)"
            )
        self._check_texts(messages)
        pictures = [
            _picture(address, f"image {number} of {len(addresses)}", over)
            for number, address in enumerate(addresses, 1)
        ]
        text = self._processor.apply_chat_template(
            [{**m, "content": as_parts(m["content"])} for m in messages],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )
        found = self._processor(
            text=[text], images=pictures, return_tensors="pt", add_special_tokens=False
        )
        ids = found["input_ids"][0].tolist()
        tensors = {
            name: value
            for name, value in found.items()
            if name not in ("input_ids", "attention_mask") and torch.is_tensor(value)
        }
        return text, ids, tensors

    def _check_texts(self, messages):
        """Text that spells the placeholder would be taken for one more image."""
        token = getattr(self._processor, "image_token", None)
        for message in messages:
            for part in as_parts(message["content"]):
                if token and token in part.get("text", ""):
                    raise ValueError(
                        f"the text spells {token!r}, which stands for an image in this model: "
                        "leave it out"
                    )


def as_parts(content):
    return content if isinstance(content, list) else [{"type": "text", "text": content or ""}]


def alike(row):
    """Rows can share a batch where this is the same for them."""
    if row.images is None:
        return None
    return {
        name: "tokens" if _by_token(value, row) else value.shape[1:]
        for name, value in row.images.items()
    }


def together(rows, width, model):
    """The arguments of ``generate`` for the images of a batch that is padded to ``width``."""
    found = {}
    for name in rows[0].images or ():
        parts = [row.images[name] for row in rows]
        if _by_token(parts[0], rows[0]):
            whole = parts[0].new_zeros(len(rows), width)
            for place, (row, part) in enumerate(zip(rows, parts, strict=True)):
                begin = width - len(row.tokens)
                whole[place, begin : begin + len(row.ids)] = part[0]
        else:
            whole = torch.cat(parts)
        dtype = model.dtype if whole.is_floating_point() else whole.dtype
        found[name] = whole.to(model.device, dtype)
    return found


def _by_token(value, row):
    """Whether a tensor says something of every token of the prompt."""
    return tuple(value.shape) == (1, len(row.ids))


def _picture(address, which, over):
    from PIL import Image, ImageOps

    try:
        data = _fetched(address, over)
    except ValueError as error:
        raise ValueError(f"{which}: {error}") from None
    try:
        picture = Image.open(io.BytesIO(data))
        return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception as error:  # of every format's own reader
        reason = "" if isinstance(error, OSError) else f" ({type(error).__name__}: {error})"
        raise ValueError(
            f"{which} is {len(data)} bytes that are no picture{reason}: give a whole PNG, JPEG, "
            "WebP or GIF file"
        ) from None


def _fetched(address, over):
    """The image's bytes; whoever waits is heard meanwhile."""
    if address[:5].lower() == "data:":
        return image_bytes(address)
    answer = []

    def fetch():
        try:
            answer.append(image_bytes(address))
        except Exception as error:  # also what a server's nonsense raises
            answer.append(error)

    thread = threading.Thread(target=fetch, name="fetch", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if over():
            raise Abandoned
    if isinstance(answer[0], Exception):
        raise ValueError(str(answer[0]))
    return answer[0]


def _what_to_do(text):
    """Why images cannot be read here, and what would help."""
    if "PIL" in text or "Pillow" in text:
        text, todo = "pillow is missing", "%engine install native --upgrade"
    elif "torchvision" in text.lower():
        text = "its processor needs torchvision"
        todo = "%engine install native --with torchvision (the build for the torch that is there)"
    else:
        todo = "see that the model's folder has its processor's files"
    return f"this model's images cannot be read: {text[:300]}: {todo}"
