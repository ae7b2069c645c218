"""A folder on its way to the Hugging Face Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, first_line


def require_name(name: str) -> None:
    """Raises UserError for what is no USER/NAME."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise UserError(f"--push {name}: expected USER/NAME, of letters, digits, '.', '-' and '_'")


def push(folder: Path, files: Sequence[str], name: str, private: bool) -> str:
    """Uploads these files of a folder as a model, which is made where there is none; returns its address.

    The token is the one that ``hf auth login`` keeps, or ``HF_TOKEN``; ``HF_ENDPOINT`` names another hub.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files))
    except Exception as error:  # of the network, of rights, of names: the library has many
        raise UserError(f"{folder} is written, and cannot be pushed to {name}: {first_line(error)}") from None
    return str(made)
