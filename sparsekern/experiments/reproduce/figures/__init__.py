"""The paper's figures, as data to be drawn."""
