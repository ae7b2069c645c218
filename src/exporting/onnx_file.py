"""A backbone as an ONNX file: normalised images in, features out."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.files import write_atomically
from ..errors import UserError, first_line
from ..models.backbones import require_size, takes
from .agreement import require_agreement

LARGEST = 2**31 - 1  # bytes of a file that ONNX holds in one piece


def require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install onnx onnxruntime onnxscript") from None


def write_onnx(path: Path, backbone: nn.Module, told: Mapping[str, Any], size: int, channels: int) -> str:
    """Writes the file and compares it, run by onnxruntime, with the backbone; returns what images it takes, in words.

    Args:
        path: of the file.
        backbone: in eval mode, on the CPU.
        told: what is kept in the file's metadata, such as mean and std.
        size: side of the images; transformers, and others that were made for one size, take this one only.
        channels: of the images.
    """
    require_size(backbone, size, channels)
    is_fixed = hasattr(backbone, "patch_embed") or not takes(backbone, size + 32, channels)
    if sum(tensor.numel() * tensor.element_size() for tensor in backbone.state_dict().values()) > LARGEST:
        raise UserError("networks of 2 GB and more do not fit into one ONNX file")
    content = _program(backbone, size, channels, is_fixed, told)
    shapes = [(1, channels, size, size), (3, channels, size, size)]
    if not is_fixed:
        shapes.append((2, channels, size + 32, size))
    require_agreement(backbone, _runner(content), shapes, "onnxruntime")
    write_atomically(path, lambda file: file.write(content))
    sides = f"{size} x {size}" if is_fixed else "height x width"
    return f"images: n x {channels} x {sides}, float32, normalised by the mean and std that its metadata tells"


def _program(backbone: nn.Module, size: int, channels: int, is_fixed: bool, told: Mapping[str, Any]) -> bytes:
    import onnx

    batch = torch.export.Dim("n", min=1)
    sides = {} if is_fixed else {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example = torch.zeros(2, channels, size, size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(
                backbone,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: batch, **sides},),
                verbose=False,
            )
        except Exception as error:  # of torch's exporter, for networks that it cannot follow
            raise UserError(f"this network cannot be exported to ONNX: {first_line(error)}") from None
        assert made is not None
        made.save(str(Path(folder) / "network.onnx"))
        model = onnx.load(str(Path(folder) / "network.onnx"))
    for name, value in told.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _runner(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        except Exception as error:  # its own kinds, which come with no base
            raise UserError(f"onnxruntime cannot compute it: {first_line(error)}") from None

    return run
