"""The demo: the whole method on a small pretrained model that comes with the package, and a generated pool."""
