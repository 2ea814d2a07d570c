"""The guide as commands: which engine can do what, takes how much and is how fast, here."""
