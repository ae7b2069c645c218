"""DINO's loss: a student predicts its teacher's centred, sharpened output (Caron et al. 2021, arXiv 2104.14294).

Shape suffixes: V = views of an image, of which the first G are the global ones, B = images of this rank, K = outputs.
"""

import torch
from torch import Tensor

from ..parallel import collectives
from ..parallel.virtual import keeps_state


def dino_loss(
    student_VBK: Tensor,
    teacher_GBK: Tensor,
    centre_K: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Cross entropy between the teacher's output of each global view and the student's of each other view (eq. 3).

    Args:
        student_VBK, teacher_GBK: outputs of the heads, float32; no gradient goes to the teacher's.
        centre_K: what is taken off the teacher's output.
        student_temperature, teacher_temperature: of the two softmaxes.

    Returns:
        the mean over the pairs of views and the images, a scalar.
    """
    targets_GBK = torch.softmax((teacher_GBK.detach() - centre_K) / teacher_temperature, dim=-1)
    predictions_VBK = torch.log_softmax(student_VBK / student_temperature, dim=-1)
    others_GBK = predictions_VBK.sum(dim=0) - predictions_VBK[: len(targets_GBK)]
    pairs = len(targets_GBK) * (len(predictions_VBK) - 1)
    return -(targets_GBK * others_GBK).sum(dim=-1).mean(dim=-1).sum() / pairs


@torch.no_grad()
def update_centre(centre_K: Tensor, teacher_GBK: Tensor, momentum: float = 0.9) -> None:
    """Moves the centre, in place, towards the mean output over the views and images of all ranks (eq. 4)."""
    mean_K = teacher_GBK.mean(dim=(0, 1))
    collectives.all_reduce_(mean_K).div_(collectives.world_size())
    if keeps_state():
        centre_K.lerp_(mean_K, 1.0 - momentum)
