"""A classifier that only answers: frozen, in eval mode, fed with another model's input."""

from __future__ import annotations

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.weights import read_checkpoint
from cyclemlp_mm.weights.unwrap import find_state_dict


class FrozenTeacher(nn.Module):
    """Wraps an mmpretrain classifier so that it takes the student's normalised images.

    Teachers were trained with their own mean, std and channel order (mmpretrain's RegNets take
    BGR). The student's input is converted to the teacher's, which also holds for mixed images.

    Args:
        classifier (dict): Config of an mmpretrain classifier, with its ``data_preprocessor``.
        student_norm (dict): ``data_preprocessor`` of the student: mean, std, to_rgb.
        checkpoint (str): The teacher's weights: path or URL. Read by :meth:`load`.
    """

    def __init__(self, classifier: dict, student_norm: dict, checkpoint: str) -> None:
        super().__init__()
        classifier = dict(classifier, init_cfg=None)
        if 'head' not in classifier:
            what = 'the teacher must be the config of an mmpretrain classifier with a head'
            raise UserError(f'{what}, but it has {sorted(classifier)}')
        teacher_norm = classifier.get('data_preprocessor') or {}
        self.model = MODELS.build(classifier)
        self.checkpoint = checkpoint
        self.is_loaded = False
        self.flips = bool(student_norm.get('to_rgb')) != bool(teacher_norm.get('to_rgb'))
        self._norms = student_norm, teacher_norm
        self._set_norm()
        self.requires_grad_(False)
        self.train(False)

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self  # it never changes: an averaged copy of the student shares it

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def _set_norm(self) -> None:
        (mean_s, std_s), (mean_t, std_t) = map(_mean_and_std, self._norms)
        if self.flips:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        device = self.scale.device if hasattr(self, 'scale') else None
        self.register_buffer('scale', (std_s / std_t).float().to(device))
        self.register_buffer('shift', ((mean_s - mean_t) / std_t).float().to(device))

    def load(self) -> None:
        """Read the checkpoint; raises a CheckpointError if not every tensor fits."""
        state_dict = find_state_dict(read_checkpoint(self.checkpoint), self.checkpoint)
        try:
            self.model.load_state_dict(state_dict, strict=True)
        except RuntimeError as error:  # what PyTorch raises for any misfit
            first = '; '.join(line.strip() for line in str(error).splitlines()[1:3])
            what = f'teacher checkpoint {self.checkpoint} does not fit model.teacher ({first})'
            raise CheckpointError(f'{what}: give those of the same classifier') from error
        self._set_norm()  # to_empty() leaves any values in it
        self.is_loaded = True
        print_log(f'teacher: loaded {len(state_dict)} tensors from {self.checkpoint}', 'current')

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of the student's images, (B, 3, H, W) under the student's norm."""
        if not self.is_loaded:
            raise CheckpointError('the teacher has no weights yet: call init_weights() first')
        if self.flips:
            images = images.flip(1)
        return self.model(images * self.scale + self.shift, mode='tensor')


def _mean_and_std(norm: dict) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each; those of ``ClsDataPreprocessor`` where the config has none."""
    defaults = dict(mean=[0.0] * 3, std=[1.0] * 3)
    numbers = (norm[k] if norm.get(k) is not None else default for k, default in defaults.items())
    return tuple(torch.tensor(three, dtype=torch.float64).view(3, 1, 1) for three in numbers)
