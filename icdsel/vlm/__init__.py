"""Vision-language models: prompts in, answers and log-probs out."""
