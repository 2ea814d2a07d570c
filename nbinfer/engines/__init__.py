"""The public engine classes, one file each; ``registry`` knows them by name."""
