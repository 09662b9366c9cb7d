"""Walsh models: configuration, accounting."""
