"""The paper's experiments: networks, data, recipes, one training loop with exact resume."""
