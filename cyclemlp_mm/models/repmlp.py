"""RepMLPNet for dense prediction: mmpretrain's blocks and weights, any image size, four levels.

Papers: RepMLP, arXiv 2105.01883; RepMLPNet, arXiv 2112.11081. The blocks are mmpretrain's
(Apache-2.0), which must be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmpretrain.models.backbones import repmlp as mmpretrain_repmlp
from torch import Tensor, nn

from cyclemlp_mm.ops.recording import has_hooks, is_plain_layer
from cyclemlp_mm.weights import split_pretrained
from cyclemlp_mm.weights.repmlp import REPMLP_FORMAT

from .arch import check_bool, check_int, check_per_stage, resolve_arch
from .conv_norm import Foldable, build_norm, fold_for_good, is_foldable
from .dense_backbone import BackboneBase


class RepMLPBlock(Foldable, mmpretrain_repmlp.RepMLPBlock):
    """mmpretrain's block, with ``norm_cfg`` in the local perceptron too, and folding for non-square
    partitions and any dtype and device."""

    deploy: bool

    def __init__(self, *, norm_cfg: dict, **kwargs) -> None:
        # mmpretrain builds norms through mmcv; here, as everywhere in this package, by build_norm.
        super().__init__(norm_cfg=dict(type='BN'), **kwargs)
        if self.deploy:
            return
        self.fc3_bn = build_norm(norm_cfg, self.num_sharesets)
        for kernel in self.reparam_conv_kernels or ():
            getattr(self, f'repconv{kernel}').bn = build_norm(norm_cfg, self.num_sharesets)

    def local_inject(self) -> None:
        """Fold norm and local perceptron into one Linear, unless one was changed or has hooks."""
        if self.deploy or not self._is_plain:
            return
        with torch.no_grad():
            weight, bias = self.get_equivalent_fc3()
        for kernel in self.reparam_conv_kernels or ():
            delattr(self, f'repconv{kernel}')
        self.fc3.weight = nn.Parameter(weight.contiguous())
        self.fc3.bias = nn.Parameter(bias.contiguous())
        self.fc3_bn = nn.Identity()
        self.deploy = True

    @property
    def _is_plain(self) -> bool:
        branches = [getattr(self, f'repconv{k}') for k in self.reparam_conv_kernels or ()]
        if any(type(branch) is not mmpretrain_repmlp.ConvModule for branch in branches):
            return False
        convs = [self.fc3, *(branch.conv for branch in branches)]
        norms = [self.fc3_bn, *(branch.norm for branch in branches)]
        foldable = all(is_foldable(norm) and norm.affine for norm in norms)
        plain = is_plain_layer(nn.Conv2d, *convs, bias=None)
        return foldable and plain and not any(map(has_hooks, branches))

    fold = local_inject

    def _convert_conv_to_fc(self, conv_kernel: Tensor, conv_bias: Tensor) -> tuple[Tensor, Tensor]:
        """The Linear on flattened partitions that equals a depthwise convolution in each."""
        cells, sets = self.path_h * self.path_w, self.num_sharesets
        units = torch.eye(cells, dtype=conv_kernel.dtype, device=conv_kernel.device)
        units = units.repeat(1, sets).reshape(cells, sets, self.path_h, self.path_w)
        padding = (conv_kernel.shape[2] // 2, conv_kernel.shape[3] // 2)
        answers = F.conv2d(units, conv_kernel, padding=padding, groups=sets)
        return answers.reshape(cells, -1).t(), conv_bias.repeat_interleave(cells)


@MODELS.register_module(name=['DenseRepMLPNet', 'RepMLPNet'], force=True)
class DenseRepMLPNet(Foldable, BackboneBase, mmpretrain_repmlp.RepMLPNet):
    """RepMLPNet (arXiv 2112.11081) for dense prediction.

    An image is padded to a multiple of ``img_size`` at the bottom and the right, and every level
    cropped to ceil(size / stride). At ``img_size`` it computes what mmpretrain's does, with its
    weights. It is also 'RepMLPNet', but in mmpretrain's scope, where that is mmpretrain's own class
    ('mmpretrain.RepMLPNet' elsewhere), whose ``patch_size``, ``conv_cfg``, ``patch_cfg`` and
    ``final_norm`` this one does not have.

    Args:
        arch (str | dict): 'base', 'b', or a dict with exactly the keys ``channels``, ``depths`` and
            ``sharesets_nums``, a list of a number per stage each. Defaults to 'base'.
        img_size (int | tuple[int, int]): Height and width that the weights are of, multiples of 32
            (for four stages). Defaults to 224.
        reparam_conv_kernels (Sequence[int], optional): Odd kernel sides of the local perceptron,
            each once; None has none. The published weights have (1, 3). Defaults to (3,), as
            mmpretrain's.
        globalperceptron_ratio (int): Squeeze ratio of the global perceptron. Defaults to 4.
        norm_cfg (dict, optional): Norm of every part, a BatchNorm with weight, bias and statistics;
            others cannot be folded. Defaults to None: BN.
        out_norms (bool): One norm per returned level; the last one is the classifier's. Defaults to
            True.
        deploy (bool): Build the blocks folded, for weights saved after :meth:`switch_to_deploy`;
            ``to_deploy`` folds more. Defaults to False.

    ``in_channels``, ``out_indices``, ``norm_eval``, ``frozen_stages``, ``with_cp``, ``init_cfg``,
    ``pretrained``: see :class:`~cyclemlp_mm.models.dense_backbone.DenseBackbone`. Levels are taken
    before the downsampling; the stem is the patch embedding.
    """

    arch_zoo: ClassVar[Mapping[str, dict]] = mmpretrain_repmlp.RepMLPNet.arch_zoo
    published_format = REPMLP_FORMAT
    stem_border = 3

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """mmcv's own initialisation of its ``ConvModule``."""
        if isinstance(module, mmpretrain_repmlp.ConvModule):
            module.init_weights()

    def __init__(
        self,
        arch: str | Mapping = 'base',
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        reparam_conv_kernels: Sequence[int] | None = (3,),
        globalperceptron_ratio: int = 4,
        norm_cfg: dict | None = None,
        out_norms: bool = True,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
        **others: object,
    ) -> None:
        if others:
            raise TypeError(
                f'DenseRepMLPNet has no argument {", ".join(others)} (final_norm is out_norms '
                "here); mmpretrain's own class is type='mmpretrain.RepMLPNet'"
            )
        arch = _check_arch(resolve_arch(arch, self.arch_zoo, 'RepMLPNet'))
        num_stages = len(arch['channels'])
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        size = tuple(sides) if isinstance(sides, Sequence) else ()
        coarsest = 4 * 2 ** (num_stages - 1)
        if len(size) != 2 or any(type(s) is not int or s < 1 or s % coarsest for s in size):
            raise ValueError(f'img_size must be multiples of {coarsest}, but got {img_size!r}')
        check_int('in_channels', in_channels)
        check_int('globalperceptron_ratio', globalperceptron_ratio)
        check_bool('out_norms', out_norms)
        check_bool('deploy', deploy)
        norm_cfg = _check_norm_cfg(norm_cfg)
        init_cfg, pretrained_cfgs = split_pretrained(init_cfg, pretrained)
        settings: dict[str, Any] = dict(
            reparam_conv_kernels=_check_kernels(reparam_conv_kernels),
            globalperceptron_ratio=globalperceptron_ratio,
            norm_cfg=norm_cfg,
            deploy=deploy,
        )
        super().__init__(arch, size, in_channels, init_cfg=init_cfg, **settings)
        self.pretrained_cfgs = pretrained_cfgs
        self.set_options(num_stages, in_channels, out_indices, frozen_stages, with_cp, norm_eval)
        self.out_channels = tuple(arch['channels'][i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)
        last = self.out_indices[-1]
        del self.stages[last + 1 :], self.downsample_layers[last:]
        for i, stage in enumerate(self.stages):
            channels = self.channels[i]
            for unit in stage:
                cells = dict(path_h=self.patch_hs[i], path_w=self.patch_ws[i])
                shares = self.sharesets_nums[i]
                unit.repmlp_block = RepMLPBlock(
                    channels=channels, num_sharesets=shares, **cells, **settings
                )
                ffn = mmpretrain_repmlp.ConvFFN(channels, 4 * channels, norm_cfg=norm_cfg)
                unit.ffn_block = ffn
        for i in self.out_indices:
            if i < num_stages - 1:
                norm = build_norm(norm_cfg, self.channels[i]) if out_norms else nn.Identity()
                self.add_module(f'norm{i}', norm)
        if not out_norms or num_stages - 1 not in self.out_indices:
            self.final_norm = nn.Identity()
        self.freeze()

    def levels(self, image: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of an image that was checked."""
        height, width = image.shape[2:]
        # No negative number is divided: ONNX rounds such quotients to zero.
        sizes = zip((height, width), self.img_size)
        pad = [(whole - side % whole) % whole for side, whole in sizes]
        x, _ = self.patch_embed(F.pad(image, (0, pad[1], 0, pad[0])))
        outputs = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downsample_layers[i - 1](x)
            for unit in stage:
                x = self.run_block(unit, x)
            if i in self.out_indices:
                stride = 4 * 2**i
                rows, columns = ((side + stride - 1) // stride for side in (height, width))
                outputs.append(self._norm_of(i)(x[:, :, :rows, :columns]).contiguous())
        return tuple(outputs)

    def switch_to_deploy(self) -> None:
        """Fold the blocks, as mmpretrain's method of this name does; a second call is harmless."""
        for module in self.modules():
            if isinstance(module, RepMLPBlock):
                module.local_inject()

    def fold(self) -> None:
        """Fold the patch embedding's norm; the blocks do theirs themselves."""
        conv, norm = self.patch_embed.projection, self.patch_embed.norm
        plain = norm is not None and is_plain_layer(nn.Conv2d, conv, bias=None)
        if plain and fold_for_good(conv, norm):
            self.patch_embed.norm = None

    def _norm_of(self, level: int) -> nn.Module:
        last = level == len(self.arch_settings['channels']) - 1
        return self.final_norm if last else getattr(self, f'norm{level}')

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` freezes."""
        stages = range(min(self.frozen_stages, len(self.stages)))
        frozen = [self.patch_embed, *(self.stages[i] for i in stages)]
        frozen += [self.downsample_layers[i - 1] for i in stages if i]
        return frozen + [self._norm_of(i) for i in stages if i in self.out_indices]


RepMLPNet = DenseRepMLPNet  # an earlier name, which mmpretrain's class has, too


def _check_arch(settings: dict) -> dict:
    """The settings as lists, which mmpretrain requires; raises ValueError if they do not fit."""
    channels = settings['channels']
    num_stages = len(channels) if isinstance(channels, Sequence) and channels else 4
    check_per_stage(settings, list(settings), num_stages)
    settings = {key: list(values) for key, values in settings.items()}
    if any(c % s for c, s in zip(settings['channels'], settings['sharesets_nums'])):
        given = f'{settings["channels"]} and {settings["sharesets_nums"]}'
        raise ValueError(f'arch channels must be multiples of sharesets_nums, but got {given}')
    return settings


def _check_kernels(kernels: Sequence[int] | None) -> tuple[int, ...] | None:
    """Raise ValueError unless kernels keep a map's size and differ from each other."""
    if kernels is None:
        return None
    listed = tuple(kernels) if isinstance(kernels, Sequence) else ()
    are_odd = all(type(k) is int and k > 0 and k % 2 for k in listed)
    if not listed or not are_odd or len(set(listed)) < len(listed):
        raise ValueError(
            f'reparam_conv_kernels must be different odd ints from 1, or None, but got {kernels!r}'
        )
    return listed


def _check_norm_cfg(norm_cfg: dict | None) -> dict:
    """Raise ValueError for norms that cannot be folded."""
    norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
    norm = build_norm(norm_cfg, 4)
    if not (is_foldable(norm) and norm.affine):
        expected = 'a BatchNorm with affine and track_running_stats'
        raise ValueError(f'norm_cfg of RepMLPNet must be {expected}, but got {norm_cfg!r}')
    return norm_cfg
