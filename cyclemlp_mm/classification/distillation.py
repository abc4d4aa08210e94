"""Distillation as in DeiT (arXiv 2012.12877) and the Paddle port of CycleMLP."""

from __future__ import annotations

from collections.abc import Callable

from mmengine.registry import MODELS
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.nn import functional as F

from .teacher import FrozenTeacher


def soft_distillation_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """``τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)) / (B · K)``, float32.

    The sum over images and classes, divided by the number of elements, as in the published code of
    DeiT and CycleMLP (losses.py); DeiT's paper (Sec. 4) divides by the images alone.

    Args:
        student (Tensor): (B, K) logits, of any floating dtype.
        teacher (Tensor): (B, K) logits; no gradient flows to them.
        tau (float): Temperature. Defaults to 1.0.
    """
    ours = F.log_softmax(student.float() / tau, dim=1)
    theirs = F.log_softmax(teacher.detach().float() / tau, dim=1)
    return tau**2 * F.kl_div(ours, theirs, reduction='sum', log_target=True) / student.numel()


def hard_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's most likely class, float32; both are (B, K) logits."""
    return F.cross_entropy(student.float(), teacher.argmax(dim=1))


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """An ``ImageClassifier`` that also learns from a teacher.

    ``loss = (1 - alpha) · base + alpha · distillation``, where ``base`` is the head's own loss and
    ``distillation`` is that of the two functions above, on the logits of the same images.

    The teacher is not part of the model: it is frozen, in eval mode, not in the optimizer, in
    ``state_dict()`` or in DDP, and moves with the model to other devices. To evaluate or to
    fine-tune, a plain ``ImageClassifier`` loads the same checkpoint.

    Args:
        teacher (dict): Config of any mmpretrain classifier, with its own ``data_preprocessor``
            (mean, std and channel order may differ from the student's).
        teacher_checkpoint (str): Its weights, path or URL; read by ``init_weights()``.
        distillation (str): 'soft' or 'hard'. Defaults to 'soft'.
        alpha (float): Weight of the distillation, in [0, 1]. Defaults to 0.5.
        tau (float): Temperature of 'soft', above 0. Defaults to 1.0.
        **classifier (object): Arguments of ``ImageClassifier``.

    Raises:
        ValueError: ``distillation``, ``alpha`` or ``tau`` is out of its range, or the teacher has
            another number of classes.
    """

    def __init__(
        self,
        teacher: dict,
        teacher_checkpoint: str,
        distillation: str = 'soft',
        alpha: float = 0.5,
        tau: float = 1.0,
        **classifier,
    ) -> None:
        if distillation not in ('soft', 'hard'):
            raise ValueError(f"distillation must be 'soft' or 'hard', but got {distillation!r}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f'alpha must be in [0, 1], but got {alpha}')
        if not tau > 0.0:
            raise ValueError(f'tau must be above 0, but got {tau}')
        norm = dict(classifier.get('data_preprocessor') or {})
        super().__init__(**classifier)
        self.distillation, self.alpha, self.tau = distillation, alpha, tau
        # In a tuple, so that it is not registered as a child.
        self._unregistered = (FrozenTeacher(teacher, norm, teacher_checkpoint),)

    @property
    def teacher(self) -> FrozenTeacher:
        """The frozen teacher."""
        return self._unregistered[0]

    def init_weights(self) -> None:
        """Initialise the student by ``init_cfg``, and load the teacher, see its ``load``."""
        super().init_weights()
        self.teacher.load()

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """``loss_base`` and ``loss_distill``, weighted, of normalised images (B, 3, H, W)."""
        feats = self.extract_feat(inputs)
        reported = self.head.loss(feats, data_samples)
        student, teacher = self.head(feats), self.teacher(inputs)
        if student.shape != teacher.shape:
            shapes = f'{tuple(teacher.shape)}, the student {tuple(student.shape)}'
            raise ValueError(f'the teacher gives logits of shape {shapes}: use the same classes')
        if self.distillation == 'hard':
            distill = hard_distillation_loss(student, teacher)
        else:
            distill = soft_distillation_loss(student, teacher, self.tau)
        reported['loss_base'] = (1.0 - self.alpha) * reported.pop('loss')
        reported['loss_distill'] = self.alpha * distill
        return reported

    def _apply(self, fn: Callable[[Tensor], Tensor], *args, **kwargs) -> DistilledClassifier:
        # What moves the model (to, cuda, half) moves the teacher.
        self.teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)
