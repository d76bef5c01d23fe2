"""Side-by-side measurements: ratios from one machine, written with the machine's description to benchmarks/results/."""
