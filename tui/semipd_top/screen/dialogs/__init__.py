"""What asks a person something, or shows one thing alone. The safe choice has the focus."""
