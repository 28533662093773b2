"""What a GPU makes of Curfew's kernels and of a whole model: `python -m benchmarks.gpu`.

Correctness first, against float64; then each kernel against the device's copy bandwidth or matrix peak, and
against its peers; then whole models with random weights at published shapes, against their floors.
"""
