"""Models of torch.nn: transformers, grouped, depthwise and 1 x 1 convolutions, normalized weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.nn import is_depthwise, sparsify_, split_attention_
from tests.clients.training import Client, assert_trains_and_resumes


class Tagger(nn.Module):
    """Token embeddings, an encoder and a head, for padded batches."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 7)

    def forward(self, tokens, padding):
        return self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=padding))


def tagger():
    model = Tagger()
    split_attention_(model)
    return model


def tagger_loss(model):
    draw = {"generator": torch.Generator().manual_seed(0)}
    tokens, labels = torch.randint(30, (4, 9), **draw), torch.randint(7, (4, 9), **draw)
    padding = torch.arange(9) >= torch.tensor([9, 7, 5, 9])[:, None]
    return F.cross_entropy(model(tokens, padding)[~padding], labels[~padding])


def test_transformer_encoder():
    report = assert_trains_and_resumes(Client(tagger, tagger_loss, exclude=("head",)))
    assert {row.name for row in report.left} == {"embedding", "head"}
    assert len(report.converted) == 2 * 6


class Mobile(nn.Sequential):
    """An inverted residual's layers, a grouped convolution, and a head."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.Conv2d(16, 48, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU6(),
            nn.Conv2d(48, 48, 3, padding=1, stride=2, groups=48, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU6(),
            nn.Conv2d(48, 24, 1),
            nn.Conv2d(24, 32, 3, groups=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 5),
        )


def image_loss(model):
    draw = {"generator": torch.Generator().manual_seed(0)}
    images, labels = torch.randn(10, 3, 10, 10, **draw), torch.randint(5, (10,), **draw)
    return F.cross_entropy(model(images), labels)


def test_grouped_and_pointwise_convolutions():
    report = assert_trains_and_resumes(Client(Mobile, image_loss, exclude=("4", "12"), learning_rate=0.02))
    assert {row.name: row.reason for row in report.left} == {"4": "excluded by '4'", "12": "excluded by '12'"}
    assert [row.shape for row in report.converted][-1] == (32, 6, 3, 3)


def test_depthwise_convolutions_are_converted_and_never_in_silence():
    """ERK keeps more of them than of other layers. Where outputs lose all they have, the report says so."""
    rows = {}
    for distribution in ("uniform", "erk"):
        report = sparsify_(
            Mobile(), 0.9, distribution=distribution, generator=torch.Generator().manual_seed(0)
        )
        (rows[distribution],) = [row for row in report.converted if row.depthwise]
        assert "1 of the" in str(report)
        assert "are depthwise" in str(report)
    assert rows["uniform"].sparsity == pytest.approx(0.9, abs=0.01)
    assert rows["erk"].sparsity < 0.85
    assert rows["uniform"].empty_outputs > rows["erk"].empty_outputs > 0
    report = sparsify_(Mobile(), 0.9, filter_fn=lambda module, name: not is_depthwise(module))
    assert [row.name for row in report.left] == ["4"]
    assert not any(row.depthwise for row in report.converted)
