"""`sparsekern convert`: weights from one format to another, without the code of the model."""
