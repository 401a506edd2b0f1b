"""Commands around the kernels: compile them for chips that are not here, measure them."""
