"""What the student pays for differing from its teacher (DeiT, arXiv 2012.12877, Sec. 4)."""

import torch.nn.functional as F
from torch import Tensor


def soft_distillation_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """``τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ))``, the mean over images.

    DeiT's code also divides by the number of classes; its paper does not, nor is it done here.

    Args:
        student (Tensor): (B, K) logits, of any floating dtype; computed in float32.
        teacher (Tensor): (B, K) logits; no gradient flows to them.
        tau (float): Temperature. Defaults to 1.0.

    Returns:
        Tensor: Scalar, float32.
    """
    return tau**2 * F.kl_div(
        F.log_softmax(student.float() / tau, dim=1),
        F.log_softmax(teacher.detach().float() / tau, dim=1),
        reduction='batchmean',
        log_target=True,
    )


def hard_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most likely class as the label, the mean over images.

    Args:
        student (Tensor): (B, K) logits, of any floating dtype; computed in float32.
        teacher (Tensor): (B, K) logits.

    Returns:
        Tensor: Scalar, float32.
    """
    return F.cross_entropy(student.float(), teacher.argmax(dim=1))
