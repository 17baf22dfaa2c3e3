"""Many runs of one recipe, side by side, and the table of their results."""
