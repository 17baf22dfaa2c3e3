"""From a dense network at its initialization to one of 2:4 weights in eight bits, stage by stage."""
