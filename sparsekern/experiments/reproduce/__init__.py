"""``sparsekern reproduce``: the paper's tables and figures from runs that are shared and never done twice."""
