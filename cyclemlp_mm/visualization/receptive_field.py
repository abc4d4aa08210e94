"""Effective receptive fields: which pixels move a feature, and how much.

Source: Luo et al., NeurIPS 2016, arXiv 1701.04128: the gradient of a level's central cell with
respect to the image, averaged over images. The size is given as in RepLKNet (arXiv 2203.06717, Sec.
4.1): the side of the smallest square around the centre that holds a share of the sum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError

from .figures import save

#: From images (1, 3, H, W) to maps (1, C, h, w), in eval mode.
Levels = Callable[[Tensor], Sequence[Tensor]]


@dataclass
class ReceptiveField:
    """The mean absolute gradient of a level at each pixel, float64 (H, W), with a sum of 1."""

    stride: int
    influence: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """y and x of its centre of mass, in pixels: where a cell looks depends on the paddings."""
        y, x = (np.arange(side) + 0.5 for side in self.influence.shape)
        return float(self.influence.sum(axis=1) @ y), float(self.influence.sum(axis=0) @ x)

    def side(self, share: float) -> int:
        """Side of the smallest square around the centre that holds ``share`` of it, in pixels."""
        y, x = (np.abs(np.indices(self.influence.shape)[i] + 0.5 - self.centre[i]) for i in (0, 1))
        distance = np.maximum(y, x).ravel()
        order = np.argsort(distance)
        held = np.cumsum(self.influence.ravel()[order])
        i = min(int(np.searchsorted(held, share * held[-1])), len(order) - 1)
        return int(2 * np.ceil(distance[order[i]]))


def receptive_fields(
    levels: Levels, strides: Sequence[int], images: Tensor
) -> list[ReceptiveField]:
    """The effective receptive field of every level, over normalised images (N, 3, H, W)."""
    sums = [np.zeros(images.shape[2:]) for _ in strides]
    for image in images:
        image = image[None].clone().requires_grad_()
        maps = levels(image)
        for total, level in zip(sums, maps, strict=True):
            y, x = level.shape[2] // 2, level.shape[3] // 2
            [gradient] = torch.autograd.grad(level[0, :, y, x].sum(), image, retain_graph=True)
            total += gradient[0].abs().sum(dim=0).double().cpu().numpy()
    if any(total.sum() == 0 for total in sums):
        raise UserError('a level does not depend on the image: are these trained weights?')
    return [ReceptiveField(s, total / total.sum()) for s, total in zip(strides, sums, strict=True)]


def backbone_levels(backbone: nn.Module) -> Levels:
    """Put a backbone of ours in eval mode, its weights frozen, its output norms left out.

    A LayerNorm's channels sum to a constant, so after one that sum has no gradient.
    """
    for i in backbone.out_indices:
        setattr(backbone, f'norm{i}', nn.Identity())
    return backbone.eval().requires_grad_(False)


def resnet50_levels(strides: Sequence[int], checkpoint: str | None = None) -> Levels:
    """Cut torchvision's ResNet-50, with random or published weights, to maps of some strides."""
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    from cyclemlp_mm.weights import read_checkpoint
    from cyclemlp_mm.weights.unwrap import find_state_dict

    names = {4: 'layer1', 8: 'layer2', 16: 'layer3', 32: 'layer4'}
    if not set(strides) <= set(names):
        raise UserError(f'ResNet-50 has maps of strides {list(names)}, not {list(strides)}')
    network = resnet50()
    if checkpoint is not None:
        try:
            network.load_state_dict(find_state_dict(read_checkpoint(checkpoint), checkpoint))
        except RuntimeError as error:
            what = f"{checkpoint} does not hold torchvision's ResNet-50"
            raise UserError(f'{what}: {str(error)[:200]}') from error
    cut = create_feature_extractor(network.eval(), [names[s] for s in strides])

    def levels(image: Tensor) -> list[Tensor]:
        if image.shape[1] != 3:  # of a model of other channels
            image = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return list(cut(image).values())

    return levels


def draw_receptive_fields(fields: Mapping[str, Sequence[ReceptiveField]], path: str | Path) -> Path:
    """Draw a row per network, by its title, and a column per level; returns ``path``."""
    columns = max(map(len, fields.values()))
    size = (2.3 * columns + 1.2, 2.75 * len(fields) + 0.3)
    figure = Figure(figsize=size, dpi=120, layout='constrained')
    grid = figure.subplots(len(fields), columns, squeeze=False)
    for row, (name, levels) in zip(grid, fields.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for axes, field in zip(row, levels, strict=True):
            strength = np.sqrt(field.influence / field.influence.max())
            drawn = axes.imshow(strength, cmap='magma', vmin=0, vmax=1)
            side, half = field.side(0.95), field.side(0.5)
            corner = [c - 0.5 - side / 2 for c in reversed(field.centre)]
            look = dict(fill=False, edgecolor='white', linestyle='--', linewidth=1)
            axes.add_patch(Rectangle(corner, side, side, **look))
            title = f'stride {field.stride}\n95%: {side} px, 50%: {half} px'
            axes.set_title(title, fontsize=8.5)
            axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=grid, shrink=0.6, aspect=30)
    bar.set_label('√(|gradient| / its maximum)', fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    return save(figure, path)
