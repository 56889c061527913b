"""How fast ``case`` is, beside what people use today and beside what the machine can do: see BENCHMARKS.md."""
