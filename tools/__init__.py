"""What the makers of the project run: python -m tools.NAME, in the project's folder."""
