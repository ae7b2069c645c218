"""A check sum over what a checkpoint holds, not over its file: the archive's own sums do not cover its directory."""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

FIELD = "checksum"
# CRC-32 of every tensor, BLAKE2b of these and of all the rest: five times as fast as BLAKE2b of everything, which
# checkpoints without this word have
_KIND = "crc32:"


def checksum(content: Mapping[str, Any]) -> str:
    """Digest of all names, values and tensors but the check sum itself."""
    return _KIND + _digest(content, lambda data: zlib.crc32(data).to_bytes(4, "big"))


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether what a checkpoint holds fits its check sum, of this or of the older kind."""
    said = content[FIELD]
    if isinstance(said, str) and said.startswith(_KIND):
        return said == checksum(content)
    return bool(said == _digest(content, lambda data: data))


def _digest(content: Mapping[str, Any], of_tensor: Callable[[Any], Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, {name: value for name, value in content.items() if name != FIELD}, of_tensor)
    return digest.hexdigest()


def _add(digest: "hashlib.blake2b", value: Any, of_tensor: Callable[[Any], Any]) -> None:
    if isinstance(value, Tensor):
        tensor = value.detach().to("cpu").contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(of_tensor(tensor.view(-1).view(torch.uint8).numpy().data) if tensor.numel() else b"")
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            digest.update(f"{type(key).__name__} {key!r} ".encode(errors="surrogatepass"))
            _add(digest, item, of_tensor)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for item in value:
            _add(digest, item, of_tensor)
    else:
        digest.update(f"{type(value).__name__} {value!r} ".encode(errors="surrogatepass"))
