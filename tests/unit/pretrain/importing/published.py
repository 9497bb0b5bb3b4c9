"""The published autoencoder at reduced width: names and shapes written out, and its forward pass from the formulas.

Nothing of the package is used here: this is what imported modules are compared with.
"""

import math

import torch
import torch.nn.functional as F

BASE, WIDTHS, Z, CONTEXT = 4, (8, 16, 16), 6, 10
LEVELS = (8, 5, 5, 5)
WIDTH, CONTROL = 24, (16, 16, 32, 32, 96, 96, 256)


def convolution(name, width_in, width_out, *kernel):
    return {f"{name}.conv3d.weight": (width_out, width_in, *kernel), f"{name}.conv3d.bias": (width_out,)}


def linear(name, width_in, width_out):
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def factorized(name, width_in, width_out):
    return convolution(f"{name}.0", width_in, width_out, 1, 3, 3) | convolution(
        f"{name}.1", width_out, width_out, 3, 1, 1
    )


def residual(name, width_in, width_out):
    skip = {} if width_in == width_out else convolution(f"{name}.nin_shortcut", width_in, width_out, 1, 1, 1)
    return {
        **norm(f"{name}.norm1.norm", width_in),
        **factorized(f"{name}.conv1", width_in, width_out),
        **norm(f"{name}.norm2.norm", width_out),
        **factorized(f"{name}.conv2", width_out, width_out),
        **skip,
    }


def attention(name, width):
    layers = [convolution(f"{name}.{part}", width, width, 1, 1, 1) for part in ("q", "k", "v", "proj_out")]
    return norm(f"{name}.norm.norm", width) | {key: shape for layer in layers for key, shape in layer.items()}


def code_attention(name, width):
    return {
        **norm(f"{name}.norm.norm", width),
        **convolution(f"{name}.q_proj", width, width, 1, 1, 1),
        **linear(f"{name}.kv_proj", width, 2 * width),
        **convolution(f"{name}.proj_out", width, width, 1, 1, 1),
    }


def query_attention(name, width):
    layers = [linear(f"{name}.{part}_proj", width, width // 2) for part in ("q", "k", "v")]
    return {key: shape for layer in layers for key, shape in layer.items()} | linear(
        f"{name}.out_proj", width // 2, width
    )


def autoencoder_shapes():
    """Names and shapes of the autoencoder's file, without its constants."""
    last = WIDTHS[-1]
    shapes = factorized("encoder.conv_in", 192, BASE)
    width = BASE
    for level, out in enumerate(WIDTHS):
        for block in range(2):
            shapes |= residual(f"encoder.down.{level}.block.{block}", width, out)
            width = out
        if level < 2:
            shapes |= convolution(f"encoder.down.{level}.downsample.conv1", width, width, 1, 3, 3)
            shapes |= convolution(f"encoder.down.{level}.downsample.conv3", width, width, 1, 1, 1)
    for part in ("encoder.mid", "decoder.mid"):
        shapes |= residual(f"{part}.block_1", last, last) | residual(f"{part}.block_2", last, last)
    shapes |= attention("encoder.mid.attn_1.0", last) | attention("encoder.mid.attn_1.1", last)
    shapes |= norm("encoder.norm_out.norm", last)
    shapes |= {
        "encoder.pos_embedding.positional_encoding_gaussian_matrix": (2, last // 2),
        "encoder.act.weight": (4, last),
    }
    queries = "encoder.qformer_ldm.qformer"
    for layer in range(2):
        name = f"{queries}.layers.{layer}"
        shapes |= query_attention(f"{name}.cross_attn_token_to_image", last)
        shapes |= norm(f"{name}.norm2", last) | norm(f"{name}.norm3", last)
        shapes |= linear(f"{name}.mlp.lin1", last, last) | linear(f"{name}.mlp.lin2", last, last)
    shapes |= query_attention(f"{queries}.final_attn_token_to_image", last) | norm(f"{queries}.norm_final_attn", last)
    shapes |= convolution("encoder.outproj_ldm", last, Z, 1, 1, 1)
    shapes |= convolution("quant_conv", Z, 4, 1, 1, 1) | convolution("post_quant_conv", 4, Z, 1, 1, 1)
    shapes |= factorized("decoder.conv_in", Z, last)
    shapes |= code_attention("decoder.mid.attn_1.0", last)
    shapes |= attention("decoder.mid.attn_1.1", last) | attention("decoder.mid.attn_1.2", last)
    width = last
    for level in (2, 1, 0):
        for block in range(3):
            shapes |= residual(f"decoder.up.{level}.block.{block}", width, WIDTHS[level])
            width = WIDTHS[level]
            if level == 2:
                shapes |= code_attention(f"decoder.up.2.attn.{block}.0", width)
                shapes |= attention(f"decoder.up.2.attn.{block}.1", width) | attention(
                    f"decoder.up.2.attn.{block}.2", width
                )
        if level:
            shapes |= convolution(f"decoder.up.{level}.upsample.conv2", width, width, 1, 3, 3)
            shapes |= convolution(f"decoder.up.{level}.upsample.conv3", width, width, 1, 1, 1)
    shapes |= norm("decoder.norm_out.norm", width) | factorized("decoder.conv_out", width, 192)
    return shapes | residual("quant_to_dit_dim", Z, CONTEXT)


def transformer_shapes():
    """Names and shapes of the transformer's file: the model of 4 blocks, the control branch of 3."""
    shapes = {}
    for net, blocks in (("net", 4), ("net_ctrl", 3)):
        shapes |= {
            f"{net}.x_embedder.proj.1.weight": (WIDTH, 72),
            f"{net}.t_embedder.1.linear_1.weight": (WIDTH, WIDTH),
            f"{net}.t_embedder.1.linear_2.weight": (3 * WIDTH, WIDTH),
            f"{net}.t_embedding_norm.weight": (WIDTH,),
            f"{net}.final_layer.linear.weight": (64, WIDTH),
            f"{net}.final_layer.adaln_modulation.1.weight": (4, WIDTH),
            f"{net}.final_layer.adaln_modulation.2.weight": (2 * WIDTH, 4),
        }
        for block in range(blocks):
            name = f"{net}.blocks.{block}"
            for part in ("self_attn", "cross_attn", "mlp"):
                shapes[f"{name}.adaln_modulation_{part}.1.weight"] = (4, WIDTH)
                shapes[f"{name}.adaln_modulation_{part}.2.weight"] = (3 * WIDTH, 4)
            for part, width in (("self_attn", WIDTH), ("cross_attn", CONTEXT)):
                shapes[f"{name}.{part}.q_proj.weight"] = shapes[f"{name}.{part}.output_proj.weight"] = (WIDTH, WIDTH)
                shapes[f"{name}.{part}.k_proj.weight"] = shapes[f"{name}.{part}.v_proj.weight"] = (WIDTH, width)
                shapes[f"{name}.{part}.q_norm.weight"] = shapes[f"{name}.{part}.k_norm.weight"] = (WIDTH // 2,)
            shapes[f"{name}.mlp.layer1.weight"] = (2 * WIDTH, WIDTH)
            shapes[f"{name}.mlp.layer2.weight"] = (WIDTH, 2 * WIDTH)
    shapes["net_ctrl.x_embedder2.proj.1.weight"] = (WIDTH, 4 * 129)
    widths = (WIDTH, *CONTROL, WIDTH)
    for layer in range(8):
        shapes |= linear(f"net_ctrl.input_hint_block.{2 * layer}", widths[layer], widths[layer + 1])
    for block in range(3):
        shapes |= linear(f"net_ctrl.zero_blocks.block{block}", WIDTH, WIDTH)
    return shapes


CONSTANTS = {
    **{
        f"{part}.wavelets": torch.full((2,), 0.7071067811865476)
        for part in ("encoder.patcher3d", "decoder.unpatcher3d")
    },
    **{f"{part}._arange": torch.arange(2) for part in ("encoder.patcher3d", "decoder.unpatcher3d")},
    "encoder.patcher3d.patch_size_buffer": torch.tensor([4], dtype=torch.int32),
}


def random_tensors(shapes, *, seed, dtype=torch.bfloat16):
    """Values that a file may hold; scales of norms are near 1, so that nothing dies out."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.2 * value
        elif name.endswith("bias"):
            value = 0.05 * value
        elif len(shape) > 1 and "gaussian" not in name and "act." not in name:
            value = value * (3 if "_proj" in name else 1) / math.sqrt(math.prod(shape[1:]))
        tensors[name] = value.to(dtype)
    return tensors


class Reference:
    """The forward pass of the published autoencoder on [B, C, T, H, W], in float64."""

    def __init__(self, tensors):
        self.p = {name: value.double() for name, value in tensors.items()}

    def conv(self, name, x, *, stride=1, pad=None):
        weight = self.p[f"{name}.conv3d.weight"]
        x = torch.cat([x[:, :, :1]] * (weight.shape[2] - 1) + [x], dim=2)
        side = weight.shape[-1] // 2
        x = F.pad(x, (side,) * 4 if pad is None else pad)
        return F.conv3d(x, weight, self.p[f"{name}.conv3d.bias"], stride=(1, stride, stride))

    def pair(self, name, x):
        return self.conv(f"{name}.1", self.conv(f"{name}.0", x))

    def norm(self, name, x):
        """Mean and variance of every frame."""
        centered = x - x.mean((1, 3, 4), keepdim=True)
        scaled = centered / (centered.square().mean((1, 3, 4), keepdim=True) + 1e-6).sqrt()
        shape = (1, -1, 1, 1, 1)
        return scaled * self.p[f"{name}.norm.weight"].view(shape) + self.p[f"{name}.norm.bias"].view(shape)

    def silu(self, x):
        return x * torch.sigmoid(x)

    def residual(self, name, x):
        h = self.pair(f"{name}.conv1", self.silu(self.norm(f"{name}.norm1", x)))
        h = self.pair(f"{name}.conv2", self.silu(self.norm(f"{name}.norm2", h)))
        has_skip = f"{name}.nin_shortcut.conv3d.weight" in self.p
        return (self.conv(f"{name}.nin_shortcut", x) if has_skip else x) + h

    def attention(self, name, x, *, over):
        """One head, over the places of a frame or over the past of a place."""
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h) for part in "qkv")
        batch, width, frames, height, columns = x.shape
        if over == "space":
            q, k, v = (
                part.permute(0, 2, 3, 4, 1).reshape(batch * frames, height * columns, width) for part in (q, k, v)
            )
            mask = torch.ones(height * columns, height * columns, dtype=torch.bool)
        else:
            q, k, v = (part.permute(0, 3, 4, 2, 1).reshape(-1, frames, width) for part in (q, k, v))
            mask = torch.ones(frames, frames, dtype=torch.bool).tril()
        weights = (q @ k.transpose(1, 2) / math.sqrt(width)).masked_fill(~mask, -torch.inf).softmax(-1)
        mixed = weights @ v
        if over == "space":
            mixed = mixed.reshape(batch, frames, height, columns, width).permute(0, 4, 1, 2, 3)
        else:
            mixed = mixed.reshape(batch, height, columns, frames, width).permute(0, 4, 3, 1, 2)
        return x + self.conv(f"{name}.proj_out", mixed)

    def split(self, x):
        """One split of all bands in time, height and width: half sums before half differences, colors last."""
        for axis in (4, 3, 2):
            even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            x = torch.cat([(even + odd) / 2, (even - odd) / 2], dim=1)
        return x

    def merge(self, x):
        for axis in (2, 3, 4):
            low, high = x.chunk(2, dim=1)
            x = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
        return x

    def features(self, x):
        x = torch.cat([x[:, :, :1]] * 3 + [x], dim=2)
        h = self.pair("encoder.conv_in", self.split(self.split(x)))
        for level in range(3):
            for block in range(2):
                h = self.residual(f"encoder.down.{level}.block.{block}", h)
            if level < 2:
                name = f"encoder.down.{level}.downsample"
                strided = self.conv(f"{name}.conv1", h, stride=2, pad=(0, 1, 0, 1))
                h = self.conv(f"{name}.conv3", strided + F.avg_pool3d(h, (1, 2, 2)))
        h = self.residual("encoder.mid.block_1", h)
        h = self.attention("encoder.mid.attn_1.1", self.attention("encoder.mid.attn_1.0", h, over="space"), over="time")
        return self.silu(self.norm("encoder.norm_out", self.residual("encoder.mid.block_2", h)))

    def linear(self, name, x):
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def layer_norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def query_attention(self, name, queries, keys, values):
        q, k, v = (
            self.linear(f"{name}.{part}_proj", x).unflatten(-1, (4, -1)).transpose(1, 2)
            for part, x in (("q", queries), ("k", keys), ("v", values))
        )
        mixed = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(f"{name}.out_proj", mixed.transpose(1, 2).flatten(2))

    def codes(self, f):
        """Features [B, C, K, h, w] -> indices [B, M, N]."""
        batch, _, steps, height, columns = f.shape
        x, y = (torch.arange(size, dtype=torch.float64).add(0.5) / size * 2 - 1 for size in (columns, height))
        places = torch.stack([x.expand(height, -1), y[:, None].expand(-1, columns)], dim=-1)
        angles = 2 * math.pi * places @ self.p["encoder.pos_embedding.positional_encoding_gaussian_matrix"]
        position = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(0, 1)
        name = "encoder.qformer_ldm.qformer"
        found = []
        for step in range(1, steps):
            values = torch.cat([f[:, :, k].flatten(2).transpose(1, 2) for k in (step - 1, step)], dim=1)
            keys = values + torch.cat([position, position])
            q = self.p["encoder.act.weight"].expand(batch, -1, -1)
            for layer in (f"{name}.layers.0", f"{name}.layers.1"):
                q = q + self.query_attention(f"{layer}.cross_attn_token_to_image", q, keys, values)
                q = self.layer_norm(f"{layer}.norm2", q)
                q = q + self.linear(f"{layer}.mlp.lin2", self.linear(f"{layer}.mlp.lin1", q).relu())
                q = self.layer_norm(f"{layer}.norm3", q)
            q = q + self.query_attention(f"{name}.final_attn_token_to_image", 2 * q, keys, values)
            found.append(self.layer_norm(f"{name}.norm_final_attn", q))
        row = torch.cat(found, dim=1).transpose(1, 2)[..., None, None]  # [B, C, M N, 1, 1]
        z = self.conv("quant_conv", self.conv("encoder.outproj_ldm", row))[..., 0, 0].transpose(1, 2)
        # FSQ (method 1.4)
        index = torch.zeros(z.shape[:2], dtype=torch.int64)
        basis = 1
        for dimension, levels in enumerate(LEVELS):
            half = (levels - 1) * 1.001 / 2
            offset = 0.5 if levels % 2 == 0 else 0.0
            bounded = torch.tanh(z[..., dimension] + math.atanh(offset / half)) * half - offset
            index += (bounded.round().long() + levels // 2) * basis
            basis *= levels
        return index.view(batch, steps - 1, 4)

    def values_of(self, indices):
        """Indices [B, M, N] -> codes as a clip of one pixel [B, 4, M N, 1, 1]."""
        numbers = []
        basis = 1
        for levels in LEVELS:
            numbers.append(((indices // basis) % levels - levels // 2) / (levels // 2))
            basis *= levels
        return torch.stack(numbers, dim=1).double().flatten(2)[..., None, None]

    def code_attention(self, name, x, context):
        """Step k reads the codes of steps <= k; frame 0 reads none."""
        h = self.norm(f"{name}.norm", x[:, :, 1:])
        q = self.conv(f"{name}.q_proj", h)
        k, v = self.linear(f"{name}.kv_proj", context).chunk(2, dim=-1)
        frames = []
        for step in range(q.shape[2]):
            seen = 4 * (step + 1)
            tokens = q[:, :, step].flatten(2).transpose(1, 2)
            weights = (tokens @ k[:, :seen].transpose(1, 2) / math.sqrt(q.shape[1])).softmax(-1)
            frames.append((weights @ v[:, :seen]).transpose(1, 2).unflatten(2, q.shape[3:]))
        read = self.conv(f"{name}.proj_out", torch.stack(frames, dim=2))
        return torch.cat([x[:, :, :1], x[:, :, 1:] + read], dim=2)

    def decode(self, f, indices):
        """Features and indices -> the coarse clip."""
        row = self.pair("decoder.conv_in", self.conv("post_quant_conv", self.values_of(indices)))
        context = row[..., 0, 0].transpose(1, 2)
        h = self.residual("decoder.mid.block_1", f[:, :, :1].repeat(1, 1, 1 + indices.shape[1], 1, 1))

        def mixed(name, h):
            h = self.code_attention(f"{name}.0", h, context)
            return self.attention(f"{name}.2", self.attention(f"{name}.1", h, over="space"), over="time")

        h = self.residual("decoder.mid.block_2", mixed("decoder.mid.attn_1", h))
        for level in (2, 1, 0):
            for block in range(3):
                h = self.residual(f"decoder.up.{level}.block.{block}", h)
                h = mixed(f"decoder.up.2.attn.{block}", h) if level == 2 else h
            if level:
                name = f"decoder.up.{level}.upsample"
                h = h.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
                h = self.conv(f"{name}.conv3", self.conv(f"{name}.conv2", h) + h)
        bands = self.pair("decoder.conv_out", self.silu(self.norm("decoder.norm_out", h)))
        return self.merge(self.merge(bands))[:, :, 3:]

    def context(self, indices, tokens):
        """The codes as keys of the video model, with keys of zeros up to `tokens`."""
        row = self.residual("quant_to_dit_dim", self.conv("post_quant_conv", self.values_of(indices)))
        keys = row[..., 0, 0].transpose(1, 2)
        return torch.cat([keys, keys.new_zeros(len(keys), tokens - keys.shape[1], keys.shape[2])], dim=1)
