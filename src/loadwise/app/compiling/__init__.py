"""`loadwise compile`: every form of a model that can serve here, made, judged and measured side by side."""
