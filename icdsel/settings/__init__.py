"""Every setting: default, bounds, where its value comes from."""
