"""The vision tower: EVA-CLIP's ViT as BLIP-2 uses it (pre-norm, no pooling, final LayerNorm kept).

Parameter names equal transformers' `InstructBlipVisionModel`, so weights map one to one.

Shapes: I images, N image tokens (patches + 1), D width, H heads, K head width.
"""

import torch
from torch import Tensor, nn
from transformers import InstructBlipVisionConfig
from transformers.activations import ACT2FN

from ibtrain.kernels import varlen_attention
from ibtrain.model.recompute import run_layer


class VisionEmbeddings(nn.Module):
    """Patches and the class token, with learned absolute positions."""

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__()
        self.image_size: int = config.image_size
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.empty(1, patches + 1, config.hidden_size))

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """[I, 3, S, S] -> [I, N, D]; ValueError when S is not the configured image size."""
        if pixels_ICHW.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {tuple(pixels_ICHW.shape[-2:])}, the vision tower takes "
                f"{self.image_size}x{self.image_size}: set data.image_size to it"
            )
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(pixels_ICHW.to(dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1).to(dtype)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.to(dtype)


class VisionAttention(nn.Module):
    """Self-attention with one fused projection for query, key and value."""

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__()
        self.heads: int = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_TD: Tensor, cu_images: Tensor, tokens: int) -> Tensor:
        """[I*N, D] -> [I*N, D]."""
        qkv_T3HK = self.qkv(hidden_TD).unflatten(-1, (3, self.heads, -1))
        query_THK, key_THK, value_THK = qkv_T3HK.unbind(1)
        out_THK = varlen_attention(
            query_THK, key_THK, value_THK, cu_images, cu_images, tokens, tokens
        )
        projected: Tensor = self.projection(out_THK.flatten(1))
        return projected


class VisionMLP(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        out: Tensor = self.fc2(self.activation(self.fc1(hidden_TD)))
        return out


class VisionLayer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_TD: Tensor, cu_images: Tensor, tokens: int) -> Tensor:
        """[T, D] -> [T, D]."""
        hidden_TD = hidden_TD + self.self_attn(self.layer_norm1(hidden_TD), cu_images, tokens)
        out_TD: Tensor = hidden_TD + self.mlp(self.layer_norm2(hidden_TD))
        return out_TD


class VisionEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden_TD: Tensor, cu_images: Tensor, tokens: int, recompute: bool = False
    ) -> Tensor:
        """[T, D] -> [T, D]."""
        for layer in self.layers:
            hidden_TD = run_layer(layer, hidden_TD, cu_images, tokens, recompute=recompute)
        return hidden_TD


class VisionTower(nn.Module):
    """Images to image tokens. The final LayerNorm belongs to what the paper trains (LAVIS's
    `ln_vision`), so it runs with gradients even where the encoder is frozen.
    """

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels_ICHW: Tensor, recompute: bool = False) -> Tensor:
        """[I, 3, S, S] -> image tokens [I, N, D]; `recompute` is gradient checkpointing."""
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            hidden_IND = self.embeddings(pixels_ICHW)
            images, tokens, _ = hidden_IND.shape
            cu_images = torch.arange(
                0, (images + 1) * tokens, tokens, dtype=torch.int32, device=hidden_IND.device
            )
            hidden_TD = self.encoder(hidden_IND.flatten(0, 1), cu_images, tokens, recompute)
        out: Tensor = self.post_layernorm(hidden_TD).unflatten(0, (images, tokens))
        return out
