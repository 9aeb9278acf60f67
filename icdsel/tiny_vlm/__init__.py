"""The bundled tiny VLM: its weights, its tokenizer, and the program that trained it."""
