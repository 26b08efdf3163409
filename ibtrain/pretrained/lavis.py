"""LAVIS's names for the weights of an InstructBLIP, both ways.

Almost all names map one to one; the vision tower's attention bias is one tensor here (query, key
and value together) and two in LAVIS, whose key has no bias. Source: transformers'
`convert_instructblip_original_to_pytorch.py`, and `eva_vit.py`, `Qformer.py` of LAVIS.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ibtrain.pretrained.torch_files import TorchSource

_BLOCK, _OUR_BLOCK = "visual_encoder.blocks.", "vision_model.encoder.layers."
_PREFIXES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.embeddings.layernorm."),
    ("Qformer.bert.", "qformer."),
    ("llm_proj.", "language_projection."),
    ("t5_proj.", "language_projection."),
    ("llm_model.", "language_model."),
    ("t5_model.", "language_model."),
)
_IN_BLOCK = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
_QKV_BIAS = ".self_attn.qkv.bias"
_Q_BIAS, _V_BIAS = ".attn.q_bias", ".attn.v_bias"
_ATTENTION = re.compile(r"(\.(?:cross)?attention)\.self\.")
_OUR_ATTENTION = re.compile(r"(\.(?:cross)?attention)\.attention\.")
# What LAVIS's files hold besides: heads of BLIP-2's first stage, and what is computed.
_PASSED_OVER = re.compile(
    r"Qformer\.cls\.|Qformer\.bert\.embeddings\.position_ids$|vision_proj\.|text_proj\.|itm_head\.|"
    r"temp$|(?:llm|t5)_model\..*rotary_emb\.inv_freq$|visual_encoder\.(?:head|norm|fc_norm)\."
)


_FIRST_STAGE = "itm_head."
_PROJECTIONS = ("opt_proj.", "llm_proj.", "t5_proj.")


def from_lavis_name(name: str) -> str | None:
    """Our name of a tensor in a LAVIS file; None for one that no InstructBLIP has.

    The two halves of an attention bias both give the name of the whole.
    """
    if name == "query_tokens":
        return name
    if name.startswith(_BLOCK):
        name = _OUR_BLOCK + name.removeprefix(_BLOCK)
        for half in (_Q_BIAS, _V_BIAS):
            if name.endswith(half):
                return name.removesuffix(half) + _QKV_BIAS
        for theirs, ours in _IN_BLOCK:
            name = name.replace(theirs, ours)
        return name
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return _ATTENTION.sub(r"\1.attention.", ours + name.removeprefix(theirs))
    return None


def to_lavis_names(name: str, *, encoder_decoder: bool) -> tuple[str, ...]:
    """LAVIS's name of one of our parameters; two for an attention bias: query's and value's.

    Args:
        name: of the parameter.
        encoder_decoder: whether the language model is a T5, which LAVIS's names tell apart.
    """
    if name.startswith(_OUR_BLOCK):
        name = _BLOCK + name.removeprefix(_OUR_BLOCK)
        if name.endswith(_QKV_BIAS):
            block = name.removesuffix(_QKV_BIAS)
            return block + _Q_BIAS, block + _V_BIAS
        for theirs, ours in _IN_BLOCK:
            name = name.replace(ours, theirs)
        return (name,)
    other = "llm_" if encoder_decoder else "t5_"
    for theirs, ours in _PREFIXES:
        if name.startswith(ours) and not theirs.startswith(other):
            named = theirs + name.removeprefix(ours)
            return (_OUR_ATTENTION.sub(r"\1.self.", named) if theirs[0] == "Q" else named,)
    return (name,)


def to_lavis(
    tensors: Iterable[tuple[str, Tensor]], *, encoder_decoder: bool
) -> Iterator[tuple[str, Tensor]]:
    """Weights under LAVIS's names.

    The middle third of an attention bias, the key's, is left out: it adds the same to all scores of
    a query, so that softmax does not see it.
    """
    for name, tensor in tensors:
        names = to_lavis_names(name, encoder_decoder=encoder_decoder)
        if len(names) == 1:
            yield names[0], tensor
            continue
        query, _, value = tensor.chunk(3)
        yield names[0], query
        yield names[1], value


@dataclass(frozen=True)
class _Origin:
    """The tensors of a file that make up one of ours: one, or a query's and a value's bias."""

    names: tuple[str, ...]


class LavisSource:
    """The tensors of a file saved by LAVIS, under our names.

    Args:
        file: a state dict, bare or under "model".
        prefix: put before every name; "visual_encoder." for a vision tower's own file.
        encoder_decoder: whether the language model is a T5; the projection into one of another
            kind is passed over.
        last_block: the vision tower's blocks beyond this one are passed over: EVA-g has 40, of
            which 39 are built.

    Raises:
        ValueError: when the file cannot be read, or holds tensors that no InstructBLIP has.
    """

    def __init__(
        self,
        file: Path,
        *,
        encoder_decoder: bool,
        prefix: str = "",
        last_block: int | None = None,
    ) -> None:
        self._source = TorchSource([file], str(file))
        theirs = self._source.shapes()
        own = "t5_proj." if encoder_decoder else "llm_proj."
        other_projections = tuple(prefix for prefix in _PROJECTIONS if prefix != own)
        left_out = sorted(name for name in theirs if (prefix + name).startswith(other_projections))
        self.description = str(file)
        if left_out:
            kind = left_out[0].partition(".")[0]
            self.description += f" (without its {kind}, which leads into another language model)"
        self.is_first_stage = any(name.startswith(_FIRST_STAGE) for name in theirs)
        """Whether it has BLIP-2's first stage's heads, which later files lack."""
        self.has_projection = any(name.startswith(_PROJECTIONS) for name in theirs)
        found: dict[str, list[str]] = {}
        unknown = []
        for name in theirs:
            full = prefix + name
            if (
                _PASSED_OVER.match(full)
                or full.startswith(other_projections)
                or _is_beyond(full, last_block)
            ):
                continue
            ours = from_lavis_name(full)
            if ours is None:
                unknown.append(name)
            else:
                found.setdefault(ours, []).append(name)
        if unknown:
            raise ValueError(
                f"{file} holds what LAVIS's InstructBLIP does not have: "
                f"{_listed(sorted(unknown))}; is it the right file?"
            )
        self._origins = {ours: self._origin(file, ours, names) for ours, names in found.items()}

    def _origin(self, file: Path, ours: str, names: list[str]) -> _Origin:
        if not ours.endswith(_QKV_BIAS):
            if len(names) > 1:
                raise ValueError(
                    f"{file} holds {names[0]!r} and {names[1]!r}, which are the same weight; "
                    "remove one"
                )
            return _Origin(tuple(names))
        names = sorted(names, key=lambda name: name.endswith(_V_BIAS))
        if len(names) == 1 and names[0].endswith(".bias"):
            return _Origin(tuple(names))
        if [name[-7:] for name in names] != [_Q_BIAS[-7:], _V_BIAS[-7:]]:
            raise ValueError(
                f"{file} holds {names[0]!r} and not the bias that belongs to it; copy it again"
            )
        return _Origin(tuple(names))

    def stored_name(self, name: str) -> str:
        """The name in the file of one of ours."""
        return self._origins[name].names[0]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        theirs = self._source.shapes()
        shapes = {}
        for ours, origin in self._origins.items():
            shape = theirs[origin.names[0]]
            shapes[ours] = shape if len(origin.names) == 1 else (3 * shape[0], *shape[1:])
        return shapes

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        tensors = [self._source.get(theirs) for theirs in self._origins[name].names]
        if len(tensors) == 1:
            return tensors[0]
        query, value = tensors
        return torch.cat([query, torch.zeros_like(query), value])


def _is_beyond(name: str, last_block: int | None) -> bool:
    if last_block is None or not name.startswith(_BLOCK):
        return False
    number = name.removeprefix(_BLOCK).partition(".")[0]
    return number.isdigit() and int(number) > last_block


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
