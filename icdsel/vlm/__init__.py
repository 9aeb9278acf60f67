"""Vision-language models: engines, the supervision of their calls, prompts."""
