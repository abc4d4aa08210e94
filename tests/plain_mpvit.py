"""MPViT written down as its description reads, step by step on whole maps, for comparison.

Modules have the published names, shared ones under both, so that its state dict is a published
file.
"""

import torch
from torch import nn


class ConvBN(nn.Module):
    def __init__(self, c_in, c_out, kernel=1, stride=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.act = nn.Hardswish() if act else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class DepthwiseSeparable(nn.Module):
    def __init__(self, c, stride):
        super().__init__()
        self.dwconv = nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False)
        self.pwconv = nn.Conv2d(c, c, 1, bias=False)
        self.bn = nn.BatchNorm2d(c)
        self.act = nn.Hardswish()

    def forward(self, x):
        return self.act(self.bn(self.pwconv(self.dwconv(x))))


def patch_embeds(c, paths, downsample):
    """One embedding after another, each the input of a path."""
    strides = [2 if downsample and i == 0 else 1 for i in range(paths)]
    embeds = [nn.ModuleDict({'patch_conv': DepthwiseSeparable(c, stride)}) for stride in strides]
    return nn.ModuleDict({'patch_embeds': nn.ModuleList(embeds)})


class PositionEncoding(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv2d(c, c, 3, 1, 1, groups=c)

    def forward(self, tokens, size):
        batch, _, c = tokens.shape
        image = tokens.transpose(1, 2).reshape(batch, c, *size)
        return tokens + self.proj(image).flatten(2).transpose(1, 2)


class RelativeEncoding(nn.Module):
    def __init__(self, head_width):
        super().__init__()
        self.conv_list = nn.ModuleList()
        self.widths = []
        for kernel, heads in ((3, 2), (5, 3), (7, 3)):
            c = heads * head_width
            self.widths.append(c)
            self.conv_list.append(nn.Conv2d(c, c, kernel, padding=kernel // 2, groups=c))

    def forward(self, q, v, size):
        batch, heads, tokens, d = v.shape
        image = v.transpose(2, 3).reshape(batch, heads * d, *size)
        parts = image.split(self.widths, dim=1)
        encoded = torch.cat([conv(part) for conv, part in zip(self.conv_list, parts)], dim=1)
        return q * encoded.reshape(batch, heads, d, tokens).transpose(2, 3)


class FactorAttention(nn.Module):
    def __init__(self, c, crpe, heads=8):
        super().__init__()
        self.heads, self.scale = heads, (c // heads) ** -0.5
        self.qkv = nn.Linear(c, 3 * c)
        self.proj = nn.Linear(c, c)
        self.crpe = crpe

    def forward(self, x, size):
        batch, tokens, c = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        context = k.softmax(dim=2).transpose(2, 3) @ v
        y = self.scale * (q @ context) + self.crpe(q, v, size)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, c))


class Mlp(nn.Module):
    def __init__(self, c, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(c, hidden), nn.GELU(), nn.Linear(hidden, c)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, c, ratio, cpe, crpe):
        super().__init__()
        self.cpe, self.crpe = cpe, crpe
        self.factoratt_crpe = FactorAttention(c, crpe)
        self.mlp = Mlp(c, ratio * c)
        self.norm1, self.norm2 = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c, eps=1e-6)

    def forward(self, x, size):
        x = self.cpe(x, size)
        x = x + self.factoratt_crpe(self.norm1(x), size)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, c, depth, ratio):
        super().__init__()
        self.cpe, self.crpe = PositionEncoding(c), RelativeEncoding(c // 8)
        self.MHCA_layers = nn.ModuleList(Layer(c, ratio, self.cpe, self.crpe) for _ in range(depth))

    def forward(self, x):
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.MHCA_layers:
            tokens = layer(tokens, size)
        return tokens.transpose(1, 2).reshape(x.shape)


class LocalBranch(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = ConvBN(c, c)
        self.dwconv = nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False)
        self.norm = nn.BatchNorm2d(c)
        self.act = nn.Hardswish()
        self.conv2 = ConvBN(c, c, act=False)

    def forward(self, x):
        return x + self.conv2(self.act(self.norm(self.dwconv(self.conv1(x)))))


class Stage(nn.Module):
    def __init__(self, c, c_out, paths, depth, ratio):
        super().__init__()
        self.mhca_blks = nn.ModuleList(Encoder(c, depth, ratio) for _ in range(paths))
        self.InvRes = LocalBranch(c)
        self.aggregate = ConvBN(c * (paths + 1), c_out)

    def forward(self, inputs):
        outputs = [self.InvRes(inputs[0])]
        outputs += [encoder(x) for encoder, x in zip(self.mhca_blks, inputs)]
        return self.aggregate(torch.cat(outputs, dim=1))


class PlainMPViT(nn.Module):
    """Four NCHW levels from an image.

    Args:
        arch (dict): A row of ``MPViT.arch_zoo``.
        classes (int, optional): With the classifier's parameters (which forward does not use).
    """

    def __init__(self, arch, classes=None):
        super().__init__()
        widths, depths, paths = arch['widths'], arch['depths'], arch['paths']
        self.stem = nn.Sequential(
            ConvBN(3, widths[0] // 2, 3, 2), ConvBN(widths[0] // 2, widths[0], 3, 2)
        )
        self.patch_embed_stages = nn.ModuleList(
            patch_embeds(widths[i], paths[i], i > 0) for i in range(4)
        )
        self.mhca_stages = nn.ModuleList(
            Stage(widths[i], widths[min(i + 1, 3)], paths[i], depths[i], arch['mlp_ratio'])
            for i in range(4)
        )
        if classes is not None:
            self.cls_head = nn.ModuleDict({'cls': nn.Linear(widths[-1], classes)})

    def forward(self, image):
        x = self.stem(image)
        levels = []
        for stage, encoders in zip(self.patch_embed_stages, self.mhca_stages):
            inputs = []
            for embed in stage['patch_embeds']:
                x = embed['patch_conv'](x)
                inputs.append(x)
            x = encoders(inputs)
            levels.append(x)
        return tuple(levels)


def randomise_norms(model):
    """Give every BatchNorm statistics and parameters that a missed or wrong fold would show."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(std=0.2)
    return model
