"""`gradsift compare`: methods of selection, trained and evaluated side by side on the user's own targets."""
