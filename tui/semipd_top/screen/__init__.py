"""The live screen: Textual widgets, views and dialogs."""
