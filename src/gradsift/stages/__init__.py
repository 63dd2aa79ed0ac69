"""The stages: files, loops and progress around the pure functions of the method."""
