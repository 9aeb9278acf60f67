"""The commands, one module each: flags in, a stage's work, a printed result."""
