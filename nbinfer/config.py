"""What to run and how: ModelParams, GenerationParams, GuidedDecodingParams, RemoteParams.

All four are frozen dataclasses that check names, types and values when they are made and
touch no file. Change one with :func:`dataclasses.replace`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any
from urllib.parse import urlsplit

from .checks import (
    Address,
    Check,
    Secret,
    boolean,
    integer,
    mapping,
    number,
    one_of,
    optional,
    own_copy,
    path_text,
    shown_address,
    text,
)
from .errors import ConfigurationError
from .generation import GenerationParams, GuidedDecodingParams, parse_setting, parse_value
from .validation import Params, checked, known_names

__all__ = [
    "GenerationParams",
    "GuidedDecodingParams",
    "ModelParams",
    "RemoteParams",
    "parse_setting",
    "parse_value",
]

_DTYPES = (
    *("auto", "float32", "float", "f32", "float16", "half", "f16"),
    *("bfloat16", "bf16", "float64", "double", "f64"),
)
# A hub token given among a library's own options is as secret as an API key.
_SECRET_OPTIONS = {"token", "hf_token", "use_auth_token", "api_key", "password"}


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise TypeError
    return {
        k: Secret(v) if k in _SECRET_OPTIONS and isinstance(v, str) else own_copy(v)
        for k, v in value.items()
    }


_OPTIONS = Check("a mapping of option names to values", _options)
_TEXT, _OPTIONAL_TEXT, _FLAG = text(), optional(text()), boolean()


@known_names
@dataclass(frozen=True, repr=False)
class ModelParams(Params):
    """Which model, and how its library loads it.

    Parameters
    ----------
    model_name : str or path, default "smollm2-135m"
        The embedded model's name, a path, a hub id (``org/name``, ``org/name@revision``,
        ``org/name:Q4_K_M``) or an alias of the settings.
    model_revision : str, optional
        Branch, tag or commit of a hub id.
    adapter_model : str or path, optional
        A LoRA adapter that applies to every request.
    adapters : mapping of str to path, optional
        LoRA adapters declared at load, by the name that ``GenerationParams.adapter`` asks for.
    tokenizer_name : str, optional
        A tokenizer other than the model's own.
    tokenizer_kwargs, processor_kwargs, chat_template_kwargs, model_kwargs : mapping, default {}
        Passed on to the engine's library; each engine refuses what it does not know.
    model_max_length : int, optional
        Context length per request in tokens, at least 1. Default: the model's own.
    trust_remote_code, compile : bool, default False
        Run the model repository's own code; compile the model.
    torch_dtype_str : str, optional
        ``"auto"``, ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"float64"`` or a short form.
    chat_template : str, optional
        A Jinja template in place of the model's own.
    attn_implementation : str, optional
        The library's name of an attention implementation.
    device_map : str or mapping, optional
        Where the weights go, as Transformers takes it.

    Raises
    ------
    ConfigurationError
        For an unknown field, or a value of the wrong type or range.
    """

    model_name: str = checked("smollm2-135m", path_text())
    _: KW_ONLY
    model_revision: str | None = checked(None, _OPTIONAL_TEXT)
    adapter_model: str | None = checked(None, optional(path_text()))
    adapters: Mapping[str, str] | None = checked(
        None, optional(mapping("a mapping of adapter names to paths", _TEXT, path_text()))
    )
    tokenizer_name: str | None = checked(None, optional(path_text()))
    tokenizer_kwargs: Mapping[str, Any] = checked({}, _OPTIONS)
    processor_kwargs: Mapping[str, Any] = checked({}, _OPTIONS)
    model_max_length: int | None = checked(None, optional(integer(1)))
    trust_remote_code: bool = checked(False, _FLAG)
    torch_dtype_str: str | None = checked(None, optional(one_of(*_DTYPES)))
    compile: bool = checked(False, _FLAG)
    chat_template: str | None = checked(None, _OPTIONAL_TEXT)
    chat_template_kwargs: Mapping[str, Any] = checked({}, _OPTIONS)
    attn_implementation: str | None = checked(None, _OPTIONAL_TEXT)
    device_map: str | Mapping[str, Any] | None = checked(
        None,
        Check(
            "a string, a mapping of module names to devices, or None",
            lambda v: v if v is None else _TEXT.convert(v) if isinstance(v, str) else _options(v),
        ),
    )
    model_kwargs: Mapping[str, Any] = checked({}, _OPTIONS)


def _url(value: Any, schemes: tuple[str, ...] = ("http", "https")) -> str:
    if not isinstance(value, str):
        raise TypeError
    parts = urlsplit(value)
    if parts.scheme not in schemes or not parts.hostname or re.search(r"\s", value):
        raise ValueError
    _ = parts.port  # raises ValueError for a port that is no number
    return Address(value)


def _urls(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _url(value)
    if not isinstance(value, Sequence) or not value:
        raise TypeError
    return tuple(_url(member) for member in value)


def _proxy(value: Any) -> str:
    return _url(value, ("http", "https", "socks5", "socks5h"))


def _header_name(value: Any) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", value):
        raise ValueError
    return str(value)


@known_names
@dataclass(frozen=True, repr=False)
class RemoteParams(Params):
    """Which server, and how patiently it is asked.

    The key, the values of headers, and passwords inside URLs are in no ``repr``, no
    ``to_dict()`` and no error message: they are shown as ``***``.

    Parameters
    ----------
    api_url : str or list of str, optional
        ``http://`` or ``https://`` address, or several that share the work.
    api_key : str, optional
        Sent as a bearer token.
    api_key_env_varname : str, optional
        The environment variable that holds the key.
    max_retries : int, default 3
        How often a request is sent again, 0 or more.
    connection_timeout_s, read_timeout_s : float, default 10.0 and 300.0
        In seconds, above 0.
    num_workers : int, optional
        Most requests under way at once, at least 1. Default: the engine's own.
    retry_backoff_base_s, retry_backoff_max_s : float, default 0.5 and 30.0
        The first wait before a retry and the longest, in seconds.
    requests_per_minute, tokens_per_minute : int, optional
        Limits that the client keeps, at least 1.
    headers : mapping of str to str, default {}
        Sent with every request.
    verify : bool or path, default True
        Check the server's certificate, or the file of authorities to check it with.
    proxy : str, optional
        ``http://``, ``https://`` or ``socks5://`` address of a proxy.
    extra_body : mapping, default {}
        Fields that are added to the body of every request as they are.

    Raises
    ------
    ConfigurationError
        For an unknown field, or a value of the wrong type or range.
    """

    api_url: str | Sequence[str] | None = checked(
        None,
        optional(Check("an http:// or https:// address, or a list of them", _urls, shown_address)),
    )
    api_key: str | None = checked(None, optional(text(secret=True)))
    api_key_env_varname: str | None = checked(None, _OPTIONAL_TEXT)
    max_retries: int = checked(3, integer(0))
    connection_timeout_s: float = checked(10.0, number(0, above=True))
    read_timeout_s: float = checked(300.0, number(0, above=True))
    num_workers: int | None = checked(None, optional(integer(1)))
    retry_backoff_base_s: float = checked(0.5, number(0))
    retry_backoff_max_s: float = checked(30.0, number(0))
    requests_per_minute: int | None = checked(None, optional(integer(1)))
    tokens_per_minute: int | None = checked(None, optional(integer(1)))
    headers: Mapping[str, str] = checked(
        {},
        mapping("a mapping of header names to strings", Check("", _header_name), text(secret=True)),
    )
    verify: bool | str = checked(
        True,
        Check(
            "True, False or the path of a file of certificate authorities",
            lambda v: v if isinstance(v, bool) else path_text().convert(v),
        ),
    )
    proxy: str | None = checked(
        None, optional(Check("an http://, https:// or socks5:// address", _proxy, shown_address))
    )

    extra_body: Mapping[str, Any] = checked({}, _OPTIONS)

    def _check_together(self) -> None:
        if self.retry_backoff_max_s < self.retry_backoff_base_s:
            raise ConfigurationError(
                f"retry_backoff_max_s={self.retry_backoff_max_s} must be at least "
                f"retry_backoff_base_s={self.retry_backoff_base_s}"
            )
