"""The bundled tiny VLM: its weights, its tokenizer and its training program."""
