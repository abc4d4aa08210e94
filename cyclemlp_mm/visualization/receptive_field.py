"""Effective receptive fields: which pixels move a feature, and how much.

Source: Luo et al., NeurIPS 2016, arXiv 1701.04128: the gradient of a level's central cell with
respect to the image, averaged over images. The size is given as in RepLKNet (arXiv 2203.06717, Sec.
4.1): the side of the smallest square around the centre that holds a share of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError

from .style import save

#: Shares of the whole gradient whose squares are told; the first is drawn too.
SHARES = (0.95, 0.5)


@dataclass
class ReceptiveField:
    """Of one level of one network.

    Attributes:
        stride (int): Pixels per cell of the level.
        influence (np.ndarray): float64, (H, W), mean absolute gradient at each pixel; sums to 1.
    """

    stride: int
    influence: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """y and x of its centre of mass, in pixels: where a cell looks depends on the paddings."""
        height, width = self.influence.shape
        y = self.influence.sum(axis=1) @ (np.arange(height) + 0.5)
        x = self.influence.sum(axis=0) @ (np.arange(width) + 0.5)
        return float(y), float(x)

    def side(self, share: float) -> int:
        """Side in pixels of the smallest square around the centre that holds ``share`` of it all.

        Where the square leaves the image, only what is in the image counts.
        """
        height, width = self.influence.shape
        y, x = self.centre
        distance = np.maximum(
            np.abs(np.arange(height)[:, None] + 0.5 - y), np.abs(np.arange(width) + 0.5 - x)
        )
        order = np.argsort(distance, axis=None)
        held = np.cumsum(self.influence.ravel()[order])
        i = min(int(np.searchsorted(held, share * held[-1])), len(order) - 1)
        return int(2 * np.ceil(distance.ravel()[order[i]]))


def receptive_fields(
    levels: Callable[[Tensor], Sequence[Tensor]], strides: Sequence[int], images: Tensor
) -> list[ReceptiveField]:
    """Effective receptive field of every level.

    Args:
        levels (Callable): From images (1, 3, H, W) to maps (1, C, h, w), in eval mode.
        strides (Sequence[int]): Pixels per cell of each map.
        images (Tensor): Normalised, (N, 3, H, W).

    Returns:
        list[ReceptiveField]: One per level.

    Raises:
        UserError: A level does not depend on the image at all.
    """
    sums = [np.zeros(images.shape[2:]) for _ in strides]
    for image in images:
        image = image[None].clone().requires_grad_()
        maps = levels(image)
        for i, level in enumerate(maps):
            y, x = level.shape[2] // 2, level.shape[3] // 2
            [gradient] = torch.autograd.grad(
                level[0, :, y, x].sum(), image, retain_graph=i + 1 < len(maps)
            )
            sums[i] += gradient[0].abs().sum(dim=0).double().cpu().numpy()
    if any(total.sum() == 0 for total in sums):
        raise UserError('a level does not depend on the image: are these trained weights?')
    return [
        ReceptiveField(stride, total / total.sum())
        for stride, total in zip(strides, sums, strict=True)
    ]


def resnet50_levels(
    strides: Sequence[int], checkpoint: str | None = None
) -> Callable[[Tensor], list[Tensor]]:
    """torchvision's ResNet-50, cut to maps of the given strides, in eval mode.

    Args:
        strides (Sequence[int]): Of 4, 8, 16, 32.
        checkpoint (str, optional): Its weights, as torchvision publishes them. Defaults to None:
            random.

    Raises:
        UserError: A stride that it does not have, or weights that are not of a ResNet-50.
    """
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    from cyclemlp_mm.weights import read_checkpoint
    from cyclemlp_mm.weights.unwrap import find_state_dict

    names = {4: 'layer1', 8: 'layer2', 16: 'layer3', 32: 'layer4'}
    if not set(strides) <= set(names):
        raise UserError(f'ResNet-50 has maps of strides {list(names)}, not {list(strides)}')
    network = resnet50()
    if checkpoint is not None:
        state_dict = find_state_dict(read_checkpoint(checkpoint), checkpoint)
        try:
            network.load_state_dict(state_dict)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint} does not hold torchvision's ResNet-50: {str(error)[:200]}"
            ) from error
    cut = create_feature_extractor(network.eval(), [names[s] for s in strides])

    def levels(image: Tensor) -> list[Tensor]:
        if image.shape[1] != 3:  # of a model of other channels
            image = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return list(cut(image).values())

    return levels


def random_images(number: int, size: int, channels: int = 3) -> Tensor:
    """Normal noise, as normalised images are: (number, channels, size, size); always the same."""
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(0))


def as_levels(backbone: nn.Module) -> Callable[[Tensor], Sequence[Tensor]]:
    """A backbone in eval mode, its output norms left out, whose gradients go to the image only.

    A LayerNorm's channels sum to a constant, so behind one the sum over the channels has no
    gradient; ResNet's maps are not normed across channels either.

    Args:
        backbone (nn.Module): One of ours; changed in place.
    """
    for i in backbone.out_indices:
        setattr(backbone, f'norm{i}', nn.Identity())
    return backbone.eval().requires_grad_(False)


def draw_receptive_fields(fields: Mapping[str, Sequence[ReceptiveField]], path: str | Path) -> Path:
    """Draw a row per network and a column per level.

    Args:
        fields (Mapping[str, Sequence[ReceptiveField]]): Of each network, by its title.
        path (str | Path): The picture to write.

    Returns:
        Path: ``path``.
    """
    columns = max(map(len, fields.values()))
    figure = Figure(
        figsize=(2.3 * columns + 1.2, 2.75 * len(fields) + 0.3), dpi=120, layout='constrained'
    )
    grid = figure.subplots(len(fields), columns, squeeze=False)
    for row, (name, levels) in zip(grid, fields.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for axes, field in zip(row, levels, strict=True):
            drawn = axes.imshow(
                np.sqrt(field.influence / field.influence.max()), cmap='magma', vmin=0, vmax=1
            )
            sides = [field.side(share) for share in SHARES]
            y, x = field.centre
            axes.add_patch(
                Rectangle(
                    (x - 0.5 - sides[0] / 2, y - 0.5 - sides[0] / 2),
                    sides[0],
                    sides[0],
                    fill=False,
                    edgecolor='white',
                    linestyle='--',
                    linewidth=1,
                )
            )
            said = ', '.join(f'{s:.0%}: {side} px' for s, side in zip(SHARES, sides, strict=True))
            axes.set_title(f'stride {field.stride}\n{said}', fontsize=8.5)
            axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=grid, shrink=0.6, aspect=30)
    bar.set_label('√(|gradient| / its maximum)', fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    return save(figure, path)
