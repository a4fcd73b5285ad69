"""Claims about speed and quality as programs: python -m benchmarks.NAME, in the project's folder."""
