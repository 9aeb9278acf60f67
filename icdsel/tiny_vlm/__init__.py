"""The bundled VLM and how it was made."""
