"""An OpenAI-compatible proxy: chat requests go through with the chosen demonstrations in front (`icdsel serve`)."""
