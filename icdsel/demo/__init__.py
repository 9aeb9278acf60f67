"""The bundled world, its tiny VLM, and the tour through all commands."""
