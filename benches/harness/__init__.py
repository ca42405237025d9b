"""What `benches/run` is made of: programs to build, contestants to start, measuring, and the report."""
