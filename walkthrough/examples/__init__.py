"""Short scripts that use minisam for something."""
