"""Vision-language models behind a server, over HTTP."""
