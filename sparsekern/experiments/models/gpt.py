"""GPT: a decoder-only transformer with the normalization before each part, as GPT-2 has it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DEVIATION = 0.02
_EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a :class:`GPT`.

    Parameters
    ----------
    vocabulary : int
        Number of different tokens.
    context : int
        The most tokens that are looked at together: there are as many learned positions.
    layers, heads : int
        Blocks, and heads of the attention in each.
    width : int
        Features of a token, a multiple of ``heads``.
    tied : bool
        Whether the logits are products with the token embedding; otherwise with a linear layer of their own,
        ``head``.
    dropout : float
        Probability of a zero, at least 0 and below 1.

    Raises
    ------
    ValueError
        Names the field, what was expected and what came.
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    tied: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, {self.heads}, got {self.width}")
        if not isinstance(self.tied, bool):
            raise ValueError(f"tied must be True or False, got {self.tied!r}")
        is_number = isinstance(self.dropout, (int, float)) and not isinstance(self.dropout, bool)
        if not is_number or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number of at least 0 and below 1, got {self.dropout!r}")

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers: ``12 * layers * width**2``, and the head's where it is not tied."""
        head = 0 if self.tied else self.vocabulary * self.width
        return (4 + 2 * _EXPANSION) * self.layers * self.width**2 + head

    @property
    def parameters(self) -> int:
        """All parameters: the linear weights, biases, embeddings and normalizations."""
        biases = (4 + _EXPANSION + 1) * self.layers * self.width
        embeddings = (self.vocabulary + self.context) * self.width
        normalizations = 2 * (2 * self.layers + 1) * self.width
        return self.linear_weights + biases + embeddings + normalizations


_GPT2_VOCABULARY = 50_257

#: Named shapes. ``tiny`` is for a CPU and bytes; ``124m`` and ``350m`` are GPT-2's two smaller ones, ``1b`` is
#: GPT-3's of 1.3 billion parameters with 16 heads in place of 24, which do not divide its width. ``8b`` has
#: 8,053,063,680 linear weights.
GPT_SIZES: dict[str, GPTConfig] = {
    "tiny": GPTConfig(vocabulary=256, context=128, layers=4, heads=4, width=128),
    "124m": GPTConfig(vocabulary=_GPT2_VOCABULARY, context=1024, layers=12, heads=12, width=768),
    "350m": GPTConfig(vocabulary=_GPT2_VOCABULARY, context=1024, layers=24, heads=16, width=1024),
    "1b": GPTConfig(vocabulary=_GPT2_VOCABULARY, context=2048, layers=24, heads=16, width=2048),
    "8b": GPTConfig(vocabulary=_GPT2_VOCABULARY, context=2048, layers=40, heads=32, width=4096),
}


class Attention(nn.Module):
    """``projection(concatenate(softmax(Q K^T / sqrt(d)) V))`` of each head, over the tokens up to its own.

    Queries, keys and values have a linear layer each, so that each is as sparse as asked for.
    """

    def __init__(self, config: GPTConfig, device: torch.device) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = _linear(config.width, config.width, device)
        self.key = _linear(config.width, config.width, device)
        self.value = _linear(config.width, config.width, device)
        self.projection = _linear(config.width, config.width, device)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        return self.projection(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """``projection(gelu(expansion(x)))``, four times as wide inside; GELU by its tanh, as in GPT-2."""

    def __init__(self, config: GPTConfig, device: torch.device) -> None:
        super().__init__()
        self.expansion = _linear(config.width, _EXPANSION * config.width, device)
        self.projection = _linear(_EXPANSION * config.width, config.width, device)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(F.gelu(self.expansion(x), approximate="tanh"))


class Block(nn.Module):
    """``x + attention(norm1(x))``, and to that ``feed_forward(norm2(.))``."""

    def __init__(self, config: GPTConfig, device: torch.device) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, device=device)
        self.attention = Attention(config, device)
        self.norm2 = nn.LayerNorm(config.width, device=device)
        self.feed_forward = FeedForward(config, device)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPT(nn.Module):
    """``logits(norm(blocks(token_embedding(tokens) + position_embedding(0, 1, ...))))``.

    Parameters
    ----------
    config : GPTConfig
        For instance one of :data:`GPT_SIZES`.
    generator : torch.Generator, optional
        Source of the initial values; PyTorch's own if None.
    device : torch.device or str, optional
        Where the parameters are; PyTorch's default device if None. On ``meta`` nothing is allocated, whatever
        the size.

    Notes
    -----
    Weights and embeddings start normal with deviation 0.02, those of ``projection`` layers, whose results are
    added to the residual stream, with ``0.02 / sqrt(2 * layers)``; biases are zero. A tied head is no layer:
    only the layers of the blocks are linear ones, and the embedding stays as it is when these are sparsified.

    Source: Radford et al. (2019), *Language Models are Unsupervised Multitask Learners*, Section 2.3.
    """

    def __init__(
        self,
        config: GPTConfig,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        device = torch.get_default_device() if device is None else torch.device(device)
        self.config = config
        self.token_embedding = _empty(nn.Embedding, config.vocabulary, config.width, device=device)
        self.position_embedding = _empty(nn.Embedding, config.context, config.width, device=device)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, device) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, device=device)
        self.head = None if config.tied else _linear(config.width, config.vocabulary, device, bias=False)
        if device.type != "meta":
            self._initialize(generator)

    def _initialize(self, generator: torch.Generator | None) -> None:
        for name, module in self.named_modules():
            if not isinstance(module, (nn.Linear, nn.Embedding)):
                continue
            residual = name.endswith(".projection")
            deviation = _DEVIATION / math.sqrt(2 * self.config.layers) if residual else _DEVIATION
            nn.init.normal_(module.weight, std=deviation, generator=generator)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each one, which only the tokens up to that one decide.

        Parameters
        ----------
        tokens : Tensor
            (batch, time) int64 or int32, of at most ``config.context`` tokens, each from 0 to
            ``config.vocabulary - 1``.

        Returns
        -------
        Tensor
            (batch, time, vocabulary).

        Raises
        ------
        ValueError
            If ``tokens`` has another number of dimensions or more tokens.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise ValueError(
                f"tokens must have the shape (batch, time) with a time of at most {self.config.context:,}, "
                f"got {tuple(tokens.shape)}"
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return F.linear(x, self.token_embedding.weight) if self.head is None else self.head(x)


def _linear(inputs: int, outputs: int, device: torch.device, bias: bool = True) -> nn.Linear:
    return _empty(nn.Linear, inputs, outputs, bias=bias, device=device)


def _empty(kind: type[nn.Module], *sizes: int, **options: object) -> nn.Module:
    """A module without initial values, so that PyTorch's own generator is left alone."""
    return nn.utils.skip_init(kind, *sizes, **options)
