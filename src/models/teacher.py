"""A frozen teacher: any checkpoint's backbone, with its head, that a student is compared with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .backbones import features_and_map, forward_by_size, in_parts
from .heads import head_of, output_width
from .pretrained import Hints, fingerprint, load_backbone

# The published programs' names of teachers -> ours; their files tell that they are ResNets
TEACHERS = {"SWAVresnet50": "resnet50", "DCresnet50": "resnet50", "SELAresnet50": "resnet50"}


class Teacher:
    """Frozen networks. Not a module, so that no checkpoint repeats them, nothing trains or wraps them.

    Args:
        path: the file, see :func:`src.models.pretrained.load_backbone`.
        arch: needed where the file does not tell its network.
        training: batch norms use the batch's statistics, as DisCo's teachers do; otherwise the running ones.
        normalise: embeddings are unit rows.
        parts: in how many parts a batch goes through the networks, see :func:`src.models.backbones.in_parts`.

    Attributes:
        backbone, head: head is None for files without one.
        queue: the file's queue of keys, (C, K), or None.
        sha256: a digest of the weights.
        identity: what a run's settings say of it: the same weights are another teacher behind another stem.
        description: one line that says what was loaded.

    Raises UserError when the file is not usable.
    """

    def __init__(
        self,
        path: str | Path,
        arch: str | None = None,
        stem: str | None = None,
        *,
        training: bool = True,
        normalise: bool = True,
        parts: int = 1,
    ) -> None:
        with torch.random.fork_rng(devices=[]):  # what is built afterwards starts as it would without a teacher
            loaded = load_backbone(path, Hints(TEACHERS.get(arch, arch) if arch else None, stem=stem))
            self.backbone = loaded.backbone
            try:
                self.head = head_of(loaded.head) if loaded.head else None
            except UserError as error:
                raise UserError(f"{path} cannot teach: {error}") from None
        self.queue, self.description = loaded.queue, loaded.description
        self.normalise, self.parts = normalise, parts
        self.networks = nn.ModuleList([self.backbone, *([self.head] if self.head is not None else [])])
        self.networks.requires_grad_(False).train(training)
        self.sha256 = fingerprint(self.networks.state_dict())
        self.identity = {"teacher_sha256": self.sha256, "teacher_network": vars(loaded.spec)}
        self._path = path

    @property
    def width(self) -> int:
        """Of its embeddings; raises UserError where the file has no head."""
        if self.head is None:
            raise UserError(f"{self._path} holds a backbone without its head, and this needs the teacher's embeddings")
        return output_width(self.head)

    def to(self, device: torch.device) -> "Teacher":
        self.networks.to(device).to(memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, C) float32."""
        return self._rows(in_parts(lambda part: self._project(self.backbone(part)), images, self.parts))

    @torch.no_grad()
    def by_size(self, crops: Sequence[Tensor]) -> Tensor:
        """V crops (B, 3, s_v, s_v) -> (V*B, C) float32, crop-major, as SwAV's networks treat them."""
        return self._rows(self._project(forward_by_size(self.backbone, crops)))

    def _project(self, features: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(features)

    def _rows(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings.float(), dim=1) if self.normalise else embeddings.float()

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """The backbone's last feature maps, (n, d, h, w)."""
        return in_parts(lambda part: features_and_map(self.backbone, part)[1], images, self.parts).float()
