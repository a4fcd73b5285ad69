"""What the notebook needs and its story does not: one module for one purpose. The notebook names what it uses."""
