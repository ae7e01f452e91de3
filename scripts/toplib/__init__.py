"""Still pictures of semipd-top from the demo source, for the gallery and the snapshot tests."""
