"""The parts of ``%panel``: a tab each, and what they share."""
