"""Files become examples: datasets, images, the bundled world."""
