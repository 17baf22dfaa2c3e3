"""Sparse weights in the formats that other code reads: dense state dicts, torch's sparse tensors, files."""

from sparsekern.export.dense import dense_from_packed, dense_state_dict
from sparsekern.export.load_shards import load_sharded
from sparsekern.export.onnx_file import to_onnx
from sparsekern.export.safetensors_file import load_safetensors, save_safetensors
from sparsekern.export.shards import save_sharded
from sparsekern.export.torch_sparse import to_semi_structured, to_torch_sparse

__all__ = [
    "dense_from_packed",
    "dense_state_dict",
    "load_safetensors",
    "load_sharded",
    "save_safetensors",
    "save_sharded",
    "to_onnx",
    "to_semi_structured",
    "to_torch_sparse",
]
