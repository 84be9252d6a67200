"""Plain functional ResNets and vision transformers under the names of the public state dicts: oracles of the tests."""

import math

import torch
import torch.nn.functional as F


class Fresh:
    """Random tensors by public name, made when first asked for."""

    def __init__(self, seed=0):
        self.tensors, self.generator = {}, torch.Generator().manual_seed(seed)

    def __call__(self, name, *shape, scale=0.1, around=0.0):
        if name not in self.tensors:
            self.tensors[name] = around + scale * torch.randn(shape, generator=self.generator)
        return self.tensors[name]

    def norm(self, name, width):
        around = {"weight": 1.0, "bias": 0.0}
        return {key: self(f"{name}.{key}", width, around=value) for key, value in around.items()}

    def batch_norm(self, x, name):
        width = x.shape[1]
        mean = self(f"{name}.running_mean", width)
        var = self(f"{name}.running_var", width, around=1.0).abs_()
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, var, **self.norm(name, width))

    def conv(self, x, name, out, kernel, stride=1):
        weight = self(f"{name}.weight", out, x.shape[1], kernel, kernel, scale=1 / math.sqrt(x.shape[1] * kernel**2))
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2)

    def linear(self, x, name, out):
        width = x.shape[-1]
        weight = self(f"{name}.weight", out, width, scale=1 / math.sqrt(width))
        return F.linear(x, weight, self(f"{name}.bias", out))

    def layer_norm(self, x, name, eps):
        return F.layer_norm(x, x.shape[-1:], **self.norm(name, x.shape[-1]), eps=eps)


def plain_resnet(fresh, x, spec):
    """As torchvision's state dict is named: (maps, vector)."""
    x = F.max_pool2d(F.relu(fresh.batch_norm(fresh.conv(x, "conv1", spec.width, 7, 2), "bn1")), 3, 2, 1)
    maps = []
    for stage, num_blocks in enumerate(spec.num_blocks):
        width = spec.width * 2**stage
        for block in range(num_blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            if spec.bottleneck:
                y = F.relu(fresh.batch_norm(fresh.conv(x, f"{name}.conv1", width, 1), f"{name}.bn1"))
                y = F.relu(fresh.batch_norm(fresh.conv(y, f"{name}.conv2", width, 3, stride), f"{name}.bn2"))
                y = fresh.batch_norm(fresh.conv(y, f"{name}.conv3", 4 * width, 1), f"{name}.bn3")
            else:
                y = F.relu(fresh.batch_norm(fresh.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.bn1"))
                y = fresh.batch_norm(fresh.conv(y, f"{name}.conv2", width, 3), f"{name}.bn2")
            if y.shape != x.shape:
                x = fresh.conv(x, f"{name}.downsample.0", y.shape[1], 1, stride)
                x = fresh.batch_norm(x, f"{name}.downsample.1")
            x = F.relu(x + y)
        maps.append(x)
    fresh.linear(x.mean((2, 3)), "fc", 10)
    return maps, x.mean((2, 3))


def plain_clip_resnet(fresh, x, spec):
    """As open_clip's ``visual.`` part is named."""
    half = spec.width // 2
    for number, (out, stride) in enumerate(((half, 2), (half, 1), (spec.width, 1)), 1):
        x = F.relu(fresh.batch_norm(fresh.conv(x, f"visual.conv{number}", out, 3, stride), f"visual.bn{number}"))
    x = F.avg_pool2d(x, 2)
    maps = []
    for stage, num_blocks in enumerate(spec.num_blocks):
        width = spec.width * 2**stage
        for block in range(num_blocks):
            name, stride = f"visual.layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = F.relu(fresh.batch_norm(fresh.conv(x, f"{name}.conv1", width, 1), f"{name}.bn1"))
            y = F.relu(fresh.batch_norm(fresh.conv(y, f"{name}.conv2", width, 3), f"{name}.bn2"))
            y = F.avg_pool2d(y, stride) if stride > 1 else y
            y = fresh.batch_norm(fresh.conv(y, f"{name}.conv3", 4 * width, 1), f"{name}.bn3")
            if block == 0:
                x = F.avg_pool2d(x, stride) if stride > 1 else x
                x = fresh.batch_norm(fresh.conv(x, f"{name}.downsample.0", 4 * width, 1), f"{name}.downsample.1")
            x = F.relu(x + y)
        maps.append(x)
    width = x.shape[1]
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
    tokens = tokens + fresh("visual.attnpool.positional_embedding", len(tokens), width)[:, None]
    for part in ("q", "k", "v"):
        fresh.linear(tokens, f"visual.attnpool.{part}_proj", width)
    fresh.linear(tokens, "visual.attnpool.c_proj", spec.vector_width)
    weights = {f"{p}_proj_weight": fresh.tensors[f"visual.attnpool.{p}_proj.weight"] for p in "qkv"}
    vector, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, width, spec.num_heads, None,
        torch.cat([fresh.tensors[f"visual.attnpool.{p}_proj.bias"] for p in "qkv"]),
        None, None, False, 0.0,
        fresh.tensors["visual.attnpool.c_proj.weight"], fresh.tensors["visual.attnpool.c_proj.bias"],
        training=False, use_separate_proj_weight=True, need_weights=False, **weights,
    )  # fmt: skip
    for name in ("text_projection", "logit_scale", "transformer.resblocks.0.ln_1.weight", "token_embedding.weight"):
        fresh(name, 3)  # the text tower, which is not taken
    return maps, vector[0]


def plain_block(fresh, tokens, block, num_heads, eps, quick_gelu, causal=False):
    """Attention and MLP as timm (``blocks.``) or open_clip (``resblocks.``) name them."""
    clip, width = "resblocks" in block, tokens.shape[-1]
    norms = ("ln_1", "ln_2") if clip else ("norm1", "norm2")
    qkv, out = ("attn.in_proj_", "attn.out_proj") if clip else ("attn.qkv.", "attn.proj")
    y = fresh.layer_norm(tokens, f"{block}.{norms[0]}", eps)
    fused = F.linear(
        y, fresh(f"{block}.{qkv}weight", 3 * width, width, scale=0.3), fresh(f"{block}.{qkv}bias", 3 * width)
    )
    q, k, v = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in fused.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    tokens = tokens + fresh.linear(y, f"{block}.{out}", width)
    names = ("mlp.c_fc", "mlp.c_proj") if clip else ("mlp.fc1", "mlp.fc2")
    y = fresh.linear(fresh.layer_norm(tokens, f"{block}.{norms[1]}", eps), f"{block}.{names[0]}", 4 * width)
    y = y * torch.sigmoid(1.702 * y) if quick_gelu else F.gelu(y)
    return tokens + fresh.linear(y, f"{block}.{names[1]}", width)


def plain_clip_text(fresh, ids_BL, sizes, prefix=""):
    """As the text tower of open_clip's state dict is named, with CLIP's own ids: vectors that are not normalised."""
    words = fresh(f"{prefix}token_embedding.weight", sizes.vocab_size, sizes.width, scale=0.5)
    position = fresh(f"{prefix}positional_embedding", sizes.context_length, sizes.width)
    tokens = F.embedding(ids_BL, words) + position[: ids_BL.shape[1]]
    for number in range(sizes.num_blocks):
        block = f"{prefix}transformer.resblocks.{number}"
        tokens = plain_block(fresh, tokens, block, sizes.num_heads, 1e-5, sizes.quick_gelu, causal=True)
    ends = fresh.layer_norm(tokens, f"{prefix}ln_final", 1e-5)[torch.arange(len(ids_BL)), ids_BL.argmax(1)]
    fresh("logit_scale", 1, around=3.0)
    return ends @ fresh(f"{prefix}text_projection", sizes.width, sizes.embedding_width)


def plain_vit(fresh, x, spec):
    """As timm's or open_clip's state dict is named: (tokens after every block, vector)."""
    clip = spec.kind == "clip_vit"
    eps, width = (1e-5 if clip else 1e-6), spec.width
    patch = "visual.conv1" if clip else "patch_embed.proj"
    weight = fresh(f"{patch}.weight", width, 3, spec.patch_size_px, spec.patch_size_px)
    bias = None if clip else fresh(f"{patch}.bias", width)
    tokens = F.conv2d(x, weight, bias, stride=spec.patch_size_px).flatten(2).transpose(1, 2)
    if clip:
        first = fresh("visual.class_embedding", width)[None, None]
        position = fresh("visual.positional_embedding", tokens.shape[1] + 1, width)
    else:
        first = fresh("cls_token", 1, 1, width)
        position = fresh("pos_embed", 1, tokens.shape[1] + 1, width)
    tokens = torch.cat([first.expand(len(x), 1, width), tokens], 1) + position
    if clip:
        tokens = fresh.layer_norm(tokens, "visual.ln_pre", eps)
    after = []
    for number in range(spec.num_blocks[0]):
        block = f"visual.transformer.resblocks.{number}" if clip else f"blocks.{number}"
        tokens = plain_block(fresh, tokens, block, spec.num_heads, eps, spec.quick_gelu)
        after.append(tokens)
    vector = fresh.layer_norm(tokens, "visual.ln_post" if clip else "norm", eps)[:, 0]
    if clip:
        fresh("visual.proj", width, 5)
        fresh("logit_scale", 1, around=3.0)
    else:
        fresh.linear(vector, "head", 10)
    return after, vector
