"""Charts of the page and of `compare --plots`: what is drawn, in which colours, as SVG or as image files."""
