"""`SplitAttention`: multi-head attention whose four projections are layers of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.formats.checks import describe
from sparsekern.nn.attention_weights import (
    PACKED,
    PROJECTIONS,
    input_biases,
    input_weights,
    linear_of,
    packed,
    why_not_split,
)
from sparsekern.nn.reasons import why_dense


class SplitAttention(nn.Module):
    r"""`torch.nn.MultiheadAttention` with an ``nn.Linear`` for each projection, which `sparsify_` converts.

    .. math:: \mathrm{head}_h = \mathrm{softmax}\left(\frac{Q_h K_h^\top}{\sqrt{d}} + M\right) V_h, \qquad
              y = W_o\,[\mathrm{head}_1, \dots] + b_o, \qquad Q = W_q q + b_q, \; \dots

    The arguments, the call and the results are those of `torch.nn.MultiheadAttention`, nested tensors
    excepted, which are refused; `split_attention_` makes one of it. The layers are ``q_proj``, ``k_proj``,
    ``v_proj`` and ``out_proj``. A state dict of `torch.nn.MultiheadAttention` can be loaded while they are
    dense: its ``in_proj_weight`` and ``in_proj_bias`` are cut in three.

    Parameters
    ----------
    embed_dim, num_heads : int
        Features of the queries and of the result, a multiple of `num_heads`.
    dropout : float
        Probability at which attention weights are zeroed in training.
    bias : bool
        Of all four projections.
    add_bias_kv : bool
        Appends a trained key and a trained value, ``bias_k`` and ``bias_v`` (1, 1, embed_dim).
    add_zero_attn : bool
        Appends a key and a value of zeros.
    kdim, vdim : int, optional
        Features of keys and values; `embed_dim` by default.
    batch_first : bool
        Whether batches are (N, L, E) rather than (L, N, E).
    device, dtype :
        Of the Parameters.

    Raises
    ------
    AssertionError, ValueError
        Where `torch.nn.MultiheadAttention` does.
    """

    # Transformer layers ask for these: their fused inference, which reads weights, is not for this module.
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        source = nn.MultiheadAttention(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        self._take(source, input_weights(source), input_biases(source))

    @classmethod
    def from_attention(
        cls,
        attention: nn.MultiheadAttention,
        weights: Sequence[nn.Parameter] | None = None,
        biases: Sequence[nn.Parameter | None] | None = None,
    ) -> SplitAttention:
        """One that computes the same.

        Parameters
        ----------
        attention : torch.nn.MultiheadAttention
            It is left unchanged; ``out_proj``'s Parameters, ``bias_k`` and ``bias_v`` are shared.
        weights, biases : sequences of Parameters, optional
            Of ``q_proj``, ``k_proj`` and ``v_proj``; new ones by default, where they are packed in
            `attention`.

        Raises
        ------
        TypeError, ValueError
            For another module, or one whose weights are not plain Parameters of its own.
        """
        if not isinstance(attention, nn.MultiheadAttention):
            raise TypeError(f"attention must be a torch.nn.MultiheadAttention, got {describe(attention)}")
        if (why := why_not_split(attention)) is not None:
            raise ValueError(f"attention must have weights that can be split, got one where {why}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(
            attention,
            input_weights(attention) if weights is None else weights,
            input_biases(attention) if biases is None else biases,
        )
        return made.train(attention.training)

    def to_attention(self) -> nn.MultiheadAttention:
        """The `torch.nn.MultiheadAttention` that computes the same, with new Parameters for what it packs.

        Raises
        ------
        ValueError
            When a projection is no ``nn.Linear``, as sparse ones are: `densify_` first.
        """
        layers = [getattr(self, name) for name in (*PROJECTIONS, "out_proj")]
        for name, layer in zip((*PROJECTIONS, "out_proj"), layers):
            if type(layer) is not nn.Linear or why_dense(layer) is not None:
                raise ValueError(
                    f"{name} must be a plain nn.Linear, got a {type(layer).__name__}; "
                    "sparsekern.nn.densify_ makes sparse layers dense"
                )
        if len({tuple(p.requires_grad for p in layer.parameters()) for layer in layers[:3]}) > 1:
            raise ValueError(
                "q_proj, k_proj and v_proj must agree in having a bias and in requires_grad, since "
                "torch.nn.MultiheadAttention packs their Parameters"
            )
        made = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            layers[0].bias is not None,
            self.bias_k is not None,
            self.add_zero_attn,
            self.kdim,
            self.vdim,
            self.batch_first,
            device="meta",
        )
        if made.in_proj_weight is not None:
            made.in_proj_weight = packed([layer.weight for layer in layers[:3]])
        else:
            for name, layer in zip(PROJECTIONS, layers):
                setattr(made, f"{name}_weight", layer.weight)
        if layers[0].bias is not None:
            made.in_proj_bias = packed([layer.bias for layer in layers[:3]])
        made.out_proj.weight, made.out_proj.bias = layers[3].weight, layers[3].bias
        made.bias_k, made.bias_v = self.bias_k, self.bias_v
        return made.train(self.training)

    def _take(
        self,
        source: nn.MultiheadAttention,
        weights: Sequence[nn.Parameter],
        biases: Sequence[nn.Parameter | None],
    ) -> None:
        self.embed_dim = source.embed_dim
        self.kdim, self.vdim = source.kdim, source.vdim
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.dropout = source.dropout
        self.batch_first = source.batch_first
        self.add_zero_attn = source.add_zero_attn
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            setattr(self, name, linear_of(weight, bias))
        self.out_proj = linear_of(source.out_proj.weight, source.out_proj.bias)
        self.bias_k, self.bias_v = source.bias_k, source.bias_v

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"batch_first={self.batch_first}"
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention of `query` to `key` and `value`, as in `torch.nn.MultiheadAttention.forward`.

        Parameters
        ----------
        query : Tensor
            (N, L, embed_dim) if `batch_first`, (L, N, embed_dim) if not, or (L, embed_dim).
        key, value : Tensor
            Likewise of length S, with kdim and vdim features.
        key_padding_mask : Tensor, optional
            (N, S), or (S,) without a batch: True where a key is ignored, or floats to add.
        need_weights : bool
            Whether to return the attention weights too, which takes an (N, num_heads, L, S) tensor.
        attn_mask : Tensor, optional
            (L, S) or (N * num_heads, L, S): True where attention is not allowed, or floats to add.
        average_attn_weights : bool
            Whether the weights returned are the mean over the heads.
        is_causal : bool
            A hint that `attn_mask` is the causal one; needs that mask.

        Returns
        -------
        y, weights : Tensor, Tensor or None
            y is as `query`; weights are (N, L, S) or (N, num_heads, L, S), without N for no batch.

        Raises
        ------
        TypeError, ValueError
            For nested tensors, masks of another type, shapes that do not fit, and `is_causal` without a mask.
        """
        _check_inputs(self, query, key, value)
        batched = query.dim() == 3
        # (N, heads, L, head_dim): layers take any leading dimensions, so nothing is transposed before them.
        q, k, v = (
            self._heads(getattr(self, name)(x), batched)
            for name, x in zip(PROJECTIONS, (query, key, value), strict=True)
        )
        mask = self._mask(q, k, key_padding_mask, attn_mask, is_causal, batched)
        # As in torch.nn.MultiheadAttention, the hint is taken where nothing else has to be masked.
        is_causal = is_causal and key_padding_mask is None and not need_weights and not self._appends
        mask = None if is_causal else mask
        k, v, mask = self._append(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        y = self.out_proj(self._joined(heads, batched))
        return y, weights if weights is None or batched else weights.squeeze(0)

    def __getattr__(self, name: str) -> Any:
        if name in PACKED:
            raise AttributeError(
                f"a SplitAttention has no {name!r}: its projections are the layers q_proj, k_proj, v_proj "
                "and out_proj; where it is nn.TransformerEncoder that reads it, call split_attention_ on a "
                "model that contains the encoder, which turns its fused inference off"
            )
        return super().__getattr__(name)

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _joined(self, heads: Tensor, batched: bool) -> Tensor:
        if not batched:
            return heads.squeeze(0).transpose(0, 1).flatten(-2)
        order = heads.transpose(1, 2) if self.batch_first else heads.permute(2, 0, 1, 3)
        return order.flatten(-2)

    def _mask(
        self,
        q: Tensor,
        k: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
        batched: bool,
    ) -> Tensor | None:
        """What is added to the scores, (N or 1, heads or 1, L or 1, S)."""
        batch, heads, length = q.shape[:3]
        keys = k.shape[2]
        if is_causal and attn_mask is None:
            raise ValueError(
                "attn_mask must be the causal mask where is_causal=True, which is a hint; got None"
            )
        parts = []
        if attn_mask is not None:
            _check_mask(attn_mask, "attn_mask", (length, keys), (batch * heads, length, keys))
            added = _added(attn_mask, q.dtype)
            parts.append(added[None, None] if added.dim() == 2 else added.unflatten(0, (batch, heads)))
        if key_padding_mask is not None:
            _check_mask(key_padding_mask, "key_padding_mask", (batch, keys) if batched else (keys,))
            parts.append(_added(key_padding_mask, q.dtype).view(batch, 1, 1, keys))
        return sum(parts[1:], parts[0]) if parts else None

    @property
    def _appends(self) -> bool:
        return self.bias_k is not None or self.add_zero_attn

    def _append(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The keys and values beside those given, which no mask hides."""
        before = k.shape[2]
        if self.bias_k is not None:
            one = (1, self.num_heads, 1, self.head_dim)
            k = torch.cat([k, self.bias_k.view(one).to(k.dtype).expand(k.shape[0], -1, -1, -1)], 2)
            v = torch.cat([v, self.bias_v.view(one).to(v.dtype).expand(v.shape[0], -1, -1, -1)], 2)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return k, v, mask if mask is None else F.pad(mask, (0, k.shape[2] - before))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # This dict is load_state_dict's own copy, and the projections are loaded from it next.
        for end in ("weight", "bias"):
            if prefix + f"in_proj_{end}" in state_dict:
                parts = state_dict.pop(prefix + f"in_proj_{end}").chunk(3)
                state_dict.update(
                    {f"{prefix}{name}.{end}": part.clone() for name, part in zip(PROJECTIONS, parts)}
                )
        for name in PROJECTIONS:
            if f"{prefix}{name}_weight" in state_dict:
                state_dict[f"{prefix}{name}.weight"] = state_dict.pop(f"{prefix}{name}_weight")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _check_inputs(attention: SplitAttention, query: Tensor, key: Tensor, value: Tensor) -> None:
    inputs = {"query": query, "key": key, "value": value}
    features = {"query": attention.embed_dim, "key": attention.kdim, "value": attention.vdim}
    for name, x in inputs.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {describe(x)}")
        if x.is_nested:
            raise ValueError(
                f"{name} must be an ordinary tensor, got a nested one, which SplitAttention does not take; "
                "pad it, and pass key_padding_mask"
            )
        if x.dim() not in (2, 3) or x.dim() != query.dim():
            what = "2 dimensions or 3" if name == "query" else f"{query.dim()} dimensions, as query has"
            raise ValueError(f"{name} must have {what}, got shape {tuple(x.shape)}")
        if x.shape[-1] != features[name]:
            raise ValueError(f"{name} must have {features[name]} features, got shape {tuple(x.shape)}")
    batch = 0 if attention.batch_first else 1
    if query.dim() == 3 and not query.shape[batch] == key.shape[batch] == value.shape[batch]:
        sizes = ", ".join(str(x.shape[batch]) for x in inputs.values())
        raise ValueError(
            f"query, key and value must have one batch size, the dimension {batch} for "
            f"batch_first={attention.batch_first}, got {sizes}"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"value must be as long as key, of shape {tuple(key.shape)}, got shape {tuple(value.shape)}"
        )


def _check_mask(mask: Any, name: str, *shapes: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"{name} must be a tensor of bool or floating point, got {describe(mask)}")
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(mask.shape)}")


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats to add to the scores: minus infinity where a bool mask is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
