"""What a sparse layer costs on this machine, beside the dense one."""
