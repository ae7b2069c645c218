"""A check sum over what a checkpoint holds, not over its file: the archive's own sums do not cover its directory."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FIELD = "checksum"


def checksum(content: Mapping[str, Any]) -> str:
    """Digest of all names, values and tensors but the check sum itself."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, {name: value for name, value in content.items() if name != FIELD})
    return digest.hexdigest()


def _add(digest: "hashlib.blake2b", value: Any) -> None:
    if isinstance(value, Tensor):
        tensor = value.detach().to("cpu").contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            digest.update(f"{type(key).__name__} {key!r} ".encode(errors="surrogatepass"))
            _add(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{type(value).__name__} {value!r} ".encode(errors="surrogatepass"))
