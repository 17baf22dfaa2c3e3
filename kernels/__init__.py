"""Triton kernels, installed as `sparsekern.kernels`. Import the one you need: none is imported here."""
